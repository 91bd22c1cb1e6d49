"""Measure top-1 and top-5 of a model on labelled images, piece by piece: an evaluation can be stopped and resumed."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sema_bench.data.classes import count_advice
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import Batches, normalised
from sema_bench.errors import ProbeError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.record import Measurement, measurements_of
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.worker.build_model import dropped_weights
from sema_bench.worker.protocol import Tally
from sema_bench.worker.workload import Workload

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


@dataclass
class Evaluation:
    """Evaluates one model at one size.

    Attributes:
        model: (B, 3, H, W) → (B, classes), in eval mode on the device of ``input_format``.
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
        self._batches = Batches(
            functools.partial(self.images.sample, size=self.input_format.size),
            chosen[self.tally.position :],
            batch=self.input_format.batch,
            workers=self.workers,
            pin=self.input_format.device.type == "cuda",
        )

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
        return facts | ({"unreadable": unreadable} if unreadable else {}) | dropped_weights(self.model)

    def _take_one(self) -> bool:
        """Evaluate the next batch; return whether there was one."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        tally, correct, correct_top5 = self.tally, 0, 0
        if len(batch.labels):
            hits = self._hits(batch.pixels, batch.labels)
            correct, correct_top5 = int(hits[:, 0].sum()), int(hits.sum())
        self.tally = dataclasses.replace(
            tally,
            position=tally.position + batch.images,
            correct=tally.correct + correct,
            correct_top5=tally.correct_top5 + correct_top5,
            seen=tally.seen + len(batch.labels),
            unreadable=tally.unreadable + len(batch.unreadable),
            unreadable_named=(*tally.unreadable_named, *batch.unreadable)[:_NAMED],
        )
        return True

    def _hits(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Compare the k best outputs with the labels: (n, ≤ 5) booleans."""
        form = self.input_format
        if missing := form.batch - len(pixels):
            pixels = torch.cat([pixels, pixels[:1].expand(missing, *pixels.shape[1:])])
        inputs = normalised(pixels, device=form.device, dtype=form.dtype, memory_format=form.memory_format)
        logits: Tensor = self.model(inputs)[: len(labels)]
        if not torch.isfinite(logits).all():
            raise ProbeError("the model's outputs are not finite; check its weights, or use --dtype float32")
        wanted = labels if self.match.outputs is None else self.match.outputs[labels]
        best = logits.float().topk(min(_TOP, logits.shape[1]), dim=1).indices.cpu()
        return best == wanted[:, None]


def evaluation_of(workload: Workload, tally: Tally, settings: EvaluationSettings) -> Evaluation:
    """Set up the evaluation of a cell; it resumes from ``tally`` if that counts the same images.

    Missing data raises UsageError, and classes that do not match the model's raise ProbeError.
    """
    cell, weights = workload.cell, workload.weights
    images = TestImages(parse_data(cell.data), protocol=cell.protocol, corrupt=cell.corrupt)
    if tally.mark != images.mark:
        tally = Tally(mark=images.mark)
    match = match_classes(
        images.classes,
        weights.classes if weights else None,
        workload.resized(dataclasses.replace(cell, batch=1)).output_count(),
        numbered=images.numbered,
        empty=images.empty_classes,
    )
    size, batch = (cell.height, cell.width), min(settings.batch, len(images))
    input_format = InputFormat(size, batch, workload.device, workload.dtype, workload.memory_format)
    return Evaluation(workload.model, images, match, input_format, workers=settings.workers, tally=tally)


def shares(tally: Tally) -> dict[str, float]:
    """Compute ``top1``, ``top5`` and their Wilson 95 % intervals, ``top1_low``, …; ProbeError without an image."""
    from scipy.stats import binomtest  # two seconds

    if not tally.seen:
        first = f", {tally.unreadable_named[0][0]} first" if tally.unreadable_named else ""
        raise ProbeError(f"none of the {tally.unreadable} test images can be read{first}")
    values: dict[str, float] = {}
    for name, hits in (("top1", tally.correct), ("top5", tally.correct_top5)):
        interval = binomtest(hits, tally.seen).proportion_ci(0.95, method="wilson")
        values |= {name: hits / tally.seen, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    return values


def accuracy_measurements(tally: Tally) -> tuple[Measurement, ...]:
    """Compute the measurements of a finished evaluation; raise ProbeError if no image could be read."""
    values = shares(tally)
    accuracy = (
        Measurement(metric=name, value=values[name], ci_low=values[f"{name}_low"], ci_high=values[f"{name}_high"])
        for name in ("top1", "top5")
    )
    took_s = max(tally.took_s, 1e-9)
    others = {
        "evaluated_images": tally.seen,
        "unreadable_images": tally.unreadable,
        "evaluation_images_per_s": tally.seen / took_s,
        "data_wait_share": min(1.0, tally.waited_s / took_s),
    }
    return (*accuracy, *measurements_of(others))
