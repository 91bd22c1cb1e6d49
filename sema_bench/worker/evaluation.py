"""Measure accuracy or mIoU of a model on labelled images, piece by piece: an evaluation can be stopped and resumed."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sema_bench.data.classes import count_advice
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import Batches, normalised
from sema_bench.errors import ProbeError
from sema_bench.spec.record import Measurement, measurements_of
from sema_bench.worker.build_model import dropped_weights
from sema_bench.worker.overlap import REPLICATES, Areas, areas_of, ious
from sema_bench.worker.protocol import Tally

#: Unreadable images that a record names; all are counted.
_NAMED = 20
_TOP = 5


class ClassMatch(NamedTuple):
    """The model's output for each label of the data (None: the same number), and how they were matched."""

    outputs: Tensor | None
    how: str


def match_classes(
    data: Sequence[str],
    model: Sequence[str] | None,
    outputs: int,
    *,
    numbered: bool = False,
    empty: Collection[str] = (),
) -> ClassMatch:
    """Match classes by name if the model has names, else by number or order; raise ProbeError if they do not match.

    Args:
        data: names of the data's classes; a label is an index into them.
        model: names of the model's outputs, if its checkpoint has them.
        outputs: number of the model's outputs.
        numbered: the names are numbers of outputs, and the last ones may be missing for lack of images.
        empty: names of the data's classes without a readable image.
    """
    if model is None:
        numbers = [int(name) for name in data] if all(name.isdecimal() for name in data) else []
        if sorted(numbers) == list(range(outputs)) or (numbered and max(numbers) < outputs):
            return ClassMatch(torch.tensor(numbers), "by number: the checkpoint names no classes")
        if len(data) != outputs:
            raise ProbeError(
                f"the data has {len(data)} classes and the model {outputs}, and its checkpoint names none of them; "
                + count_advice(data, outputs, empty)
            )
        return ClassMatch(None, "by order: the checkpoint names no classes")
    index = {name: position for position, name in enumerate(model)}
    unknown = [name for name in data if name not in index]
    if unknown:
        without = " (no image of it can be read)" if unknown[0] in empty else ""
        raise ProbeError(
            f"{len(unknown)} of the data's {len(data)} classes are unknown to the checkpoint, {unknown[0]!r} first"
            f"{without}; it knows {len(model)}: {', '.join(model[:3])}{', …' if len(model) > 3 else ''}"
        )
    return ClassMatch(torch.tensor([index[name] for name in data]), "by name")


@dataclass(frozen=True)
class InputFormat:
    """The batches that a model takes: (batch, 3, *size), of this type, on this device."""

    size: tuple[int, int]
    batch: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last

    def run(self, model: Any, pixels: Tensor) -> Tensor:
        """Run ``model`` on pixels (n, H, W, 3) in a full batch; return its n outputs."""
        count = len(pixels)
        if missing := self.batch - count:
            pixels = torch.cat([pixels, pixels[:1].expand(missing, *pixels.shape[1:])])
        inputs = normalised(pixels, device=self.device, dtype=self.dtype, memory_format=self.memory_format)
        outputs: Tensor = model(inputs)[:count].float()
        if not torch.isfinite(outputs).all():
            raise ProbeError("the model's outputs are not finite; check its weights, or use --dtype float32")
        return outputs

    def batches(self, images: TestImages, indices: Sequence[int], *, workers: int | None) -> Batches:
        """Load the ``images`` of these indices in such batches."""
        sample = functools.partial(images.sample, size=self.size)
        return Batches(sample, indices, batch=self.batch, workers=workers, pin=self.device.type == "cuda")


@dataclass
class Evaluation:
    """Evaluates one model at one size.

    Attributes:
        model: (B, 3, H, W) → (B, classes), or (B, classes, H, W) for images whose pixels have classes; in eval mode on
            the device of ``input_format``.
        match: labels → outputs.
        input_format: the last batch is filled up, so that every pass has the same shape.
        workers: processes that draw or decode; None: spare CPUs.
        tally: the counts so far; at the start, where to resume.
        indices: of the images to test on; None: all.
    """

    model: Any
    images: TestImages
    match: ClassMatch
    input_format: InputFormat
    _: KW_ONLY
    workers: int | None
    tally: Tally
    indices: Sequence[int] | None = None

    def __post_init__(self) -> None:
        chosen = range(len(self.images)) if self.indices is None else self.indices
        self.total = len(chosen)
        self._indices = chosen
        self._batches = self.input_format.batches(self.images, chosen[self.tally.position :], workers=self.workers)

    def advance(self, seconds: float) -> bool:
        """Continue for about ``seconds``; return whether all images are done."""
        started, waited = time.perf_counter(), self._batches.waited_s
        done = False
        with torch.inference_mode():
            while not done and time.perf_counter() - started < seconds:
                done = not self._take_one()
        self.tally = dataclasses.replace(
            self.tally,
            took_s=self.tally.took_s + time.perf_counter() - started,
            waited_s=self.tally.waited_s + self._batches.waited_s - waited,
        )
        return done

    def stated(self) -> dict[str, Any]:
        """Describe the evaluation for a record: the data, its preparation, unreadable images."""
        unreadable = [f"{name}: {reason}" for name, reason in self.tally.unreadable_named]
        facts = {**self.images.stated(), "classes_matched": self.match.how, "batch": self.input_format.batch}
        if self.tally.areas:
            bounds = ious(areas_from(self.tally), self.tally.seen)[1]
            outputs = range(len(bounds)) if self.match.outputs is None else self.match.outputs.tolist()
            facts["iou"] = {name: bounds[output] for name, output in zip(self.images.classes, outputs, strict=True)}
        return facts | ({"unreadable": unreadable} if unreadable else {}) | dropped_weights(self.model)

    def _take_one(self) -> bool:
        """Evaluate the next batch; return whether there was one."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        tally = self.tally
        if len(batch.labels):
            logits = self.input_format.run(self.model, batch.pixels)
            wanted = batch.labels if self.match.outputs is None else self.match.outputs[batch.labels]
            tally = self._with_areas(logits, wanted) if self.images.segmented else self._with_hits(logits, wanted)
        self.tally = dataclasses.replace(
            tally,
            position=tally.position + batch.images,
            seen=tally.seen + len(batch.labels),
            unreadable=tally.unreadable + len(batch.unreadable),
            unreadable_named=(*tally.unreadable_named, *batch.unreadable)[:_NAMED],
        )
        return True

    def _with_hits(self, logits: Tensor, labels: Tensor) -> Tally:
        """Count the images whose label (n,) is the best output, and those with it among the best five."""
        best = logits.topk(min(_TOP, logits.shape[1]), dim=1).indices.cpu()
        hits = best == labels[:, None]
        correct, correct_top5 = self.tally.correct + int(hits[:, 0].sum()), self.tally.correct_top5 + int(hits.sum())
        return dataclasses.replace(self.tally, correct=correct, correct_top5=correct_top5)

    def _with_areas(self, logits: Tensor, masks: Tensor) -> Tally:
        """Add up how the best output of each pixel overlaps ``masks`` (n, H, W)."""
        start = self.tally.position
        predicted, indices = logits.argmax(dim=1).cpu().numpy(), self._indices[start : start + len(masks)]
        added = areas_of(predicted, masks.numpy(), indices, logits.shape[1]).ravel()
        before = np.array(self.tally.areas or 0)
        return dataclasses.replace(self.tally, areas=tuple((before + added).tolist()))


def areas_from(tally: Tally) -> Areas:
    """Reshape the flat areas of ``tally``."""
    return np.array(tally.areas).reshape(1 + REPLICATES, 3, -1)


def shares(tally: Tally) -> dict[str, Any]:
    """Compute ``top1`` and ``top5``, or ``miou``, with 95 % intervals, ``top1_low``, …; ProbeError without an image.

    The intervals are Wilson's; that of mIoU is a bootstrap over images, None with too few of them.
    """
    from scipy.stats import binomtest  # two seconds

    if not tally.seen:
        first = f", {tally.unreadable_named[0][0]} first" if tally.unreadable_named else ""
        raise ProbeError(f"none of the {tally.unreadable} test images can be read{first}")
    if tally.areas:
        value, low, high = ious(areas_from(tally), tally.seen)[0]
        return {"miou": value, "miou_low": low, "miou_high": high}
    values: dict[str, Any] = {}
    for name, hits in (("top1", tally.correct), ("top5", tally.correct_top5)):
        interval = binomtest(hits, tally.seen).proportion_ci(0.95, method="wilson")
        values |= {name: hits / tally.seen, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    return values


def accuracy_measurements(tally: Tally) -> tuple[Measurement, ...]:
    """Compute the measurements of a finished evaluation; raise ProbeError if no image could be read."""
    values = shares(tally)
    accuracy = (
        Measurement(metric=name, value=values[name], ci_low=values[f"{name}_low"], ci_high=values[f"{name}_high"])
        for name in ("top1", "top5", "miou")
        if name in values
    )
    took_s = max(tally.took_s, 1e-9)
    others = {
        "evaluated_images": tally.seen,
        "unreadable_images": tally.unreadable,
        "evaluation_images_per_s": tally.seen / took_s,
        "data_wait_share": min(1.0, tally.waited_s / took_s),
    }
    return (*accuracy, *measurements_of(others))
