"""Top-1 and top-5 of a model on labelled images, piece by piece: it can be watched, stopped and gone on with."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sema_bench.data.classes import count_advice
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import Batches, default_workers, normalised
from sema_bench.errors import ProbeError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.record import Measurement
from sema_bench.worker.trained_model import dropped_weights

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload

#: Unreadable images that a record names; all are counted.
_NAMED = 20
_TOP = 5


@dataclass
class Tally:
    """What was found so far of the images before ``position``; goes to JSON and back."""

    position: int = 0
    correct: int = 0
    correct_top5: int = 0
    seen: int = 0
    unreadable: int = 0
    unreadable_named: list[Sequence[str]] = field(default_factory=list)
    waited_s: float = 0.0
    took_s: float = 0.0
    #: Of the images it is about.
    mark: str = ""


class ClassMatch(NamedTuple):
    """How labels of the data become outputs of the model, and how that was decided."""

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
    """Match classes by name where the model knows its names, by number or order where it does not.

    Args:
        data: names of the data's classes; a label is an index into them.
        model: names of the model's outputs, if its checkpoint has them.
        outputs: how many the model has.
        numbered: the names are numbers of outputs, and the last ones may be missing because no image is of them.
        empty: names of the data's classes without an image that can be read.

    Raises:
        ProbeError: a class that the model does not know, or counts that differ.
    """
    if model is None:
        numbers = [int(name) for name in data] if all(name.isdecimal() for name in data) else []
        if sorted(numbers) == list(range(outputs)) or (numbered and max(numbers) < outputs):
            return ClassMatch(torch.tensor(numbers), "by number: the checkpoint names no classes")
        if len(data) != outputs:
            raise ProbeError(
                f"the data has {len(data)} classes and the model {outputs}, whose names its checkpoint does not tell; "
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


class Evaluation:
    """Evaluates one model at one size.

    Attributes:
        images: how many there are.
        tally: what was found so far.

    Args:
        model: (B, 3, H, W) → (B, classes), in eval mode on ``device``.
        images: what it is tested on.
        match: labels → outputs.
        size: (H, W).
        batch: images of one forward pass; the last one is filled up, so that every pass has the same shape.
        workers: processes that draw or decode.
        device, dtype, memory_format: of the input.
        tally: where to go on; empty at the start.
        indices: images to test on; None: all.
    """

    def __init__(
        self,
        model: Any,
        images: TestImages,
        match: ClassMatch,
        *,
        size: tuple[int, int],
        batch: int,
        workers: int,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        tally: Tally,
        indices: Sequence[int] | None = None,
    ) -> None:
        self._model = model
        self._match = match
        self._batch = batch
        self._test_images = images
        self._normalised = functools.partial(normalised, device=device, dtype=dtype, memory_format=memory_format)
        self.tally = tally
        chosen = range(len(images)) if indices is None else indices
        self.images = len(chosen)
        self._batches = Batches(
            functools.partial(images.sample, size=size),
            chosen[tally.position :],
            batch=batch,
            workers=workers,
            pin=device.type == "cuda",
        )

    def advance(self, seconds: float) -> bool:
        """Go on for about ``seconds``; tells whether all images have been seen."""
        started, waited = time.perf_counter(), self._batches.waited_s
        done = False
        with torch.inference_mode():
            while not done and time.perf_counter() - started < seconds:
                done = not self._take_one()
        self.tally.took_s += time.perf_counter() - started
        self.tally.waited_s += self._batches.waited_s - waited
        return done

    def stated(self) -> dict[str, Any]:
        """Return what a record states: the data, each constant of its preparation, and what could not be read."""
        unreadable = [f"{name}: {reason}" for name, reason in self.tally.unreadable_named]
        facts = {**self._test_images.stated(), "classes_matched": self._match.how, "batch": self._batch}
        return facts | ({"unreadable": unreadable} if unreadable else {}) | dropped_weights(self._model)

    def _take_one(self) -> bool:
        """Evaluate the next batch; tells whether there was one."""
        batch = next(self._batches, None)
        if batch is None:
            return False
        tally = self.tally
        if len(batch.labels):
            hits = self._hits(batch.pixels, batch.labels)
            tally.correct += int(hits[:, 0].sum())
            tally.correct_top5 += int(hits.sum())
        tally.seen += len(batch.labels)
        tally.unreadable += len(batch.unreadable)
        tally.unreadable_named += [list(each) for each in batch.unreadable][: _NAMED - len(tally.unreadable_named)]
        tally.position += batch.asked_for
        return True

    def _hits(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return (n, ≤ 5): whether the k-th best output is the label's."""
        missing = self._batch - len(pixels)
        if missing:
            pixels = torch.cat([pixels, pixels[:1].expand(missing, *pixels.shape[1:])])
        logits: Tensor = self._model(self._normalised(pixels))[: len(labels)]
        if not torch.isfinite(logits).all():
            raise ProbeError("the model's outputs are not finite; its weights or the dtype are no good at this size")
        wanted = labels if self._match.outputs is None else self._match.outputs[labels]
        best = logits.float().topk(min(_TOP, logits.shape[1]), dim=1).indices.cpu()
        return best == wanted[:, None]


def evaluation_of(workload: Workload, *, tally: Tally, batch: int, workers: int | None) -> Evaluation:
    """Return the evaluation of a cell.

    Args:
        workload: the cell with its model.
        tally: where to go on.
        batch: images of one forward pass.
        workers: processes that prepare images; None: as many as there are CPUs to spare.

    Raises:
        UsageError: the data is not there.
        ProbeError: its classes are not those of the model.
    """
    cell = workload.cell
    images = TestImages(parse_data(cell.data))
    if tally.mark != images.mark:  # at the start, or what was seen so far was of other images
        tally = Tally(mark=images.mark)
    weights = workload.weights
    outputs = workload.resized(dataclasses.replace(cell, batch=1)).output_count()
    return Evaluation(
        workload.model,
        images,
        match_classes(
            images.classes,
            weights.classes if weights else None,
            outputs,
            numbered=images.numbered,
            empty=images.empty_classes,
        ),
        size=(cell.height, cell.width),
        batch=min(batch, len(images)),
        workers=default_workers() if workers is None else workers,
        device=workload.device,
        dtype=workload.dtype,
        memory_format=workload.memory_format,
        tally=tally,
    )


def shares(correct: int, correct_top5: int, seen: int) -> dict[str, float]:
    """Return ``top1``, ``top5`` and the ends of their Wilson 95 % intervals, ``top1_low``, ….

    Raises:
        ProbeError: nothing was seen.
    """
    from scipy.stats import binomtest

    if not seen:
        raise ProbeError("none of the images can be read")
    found: dict[str, float] = {}
    for name, hits in (("top1", correct), ("top5", correct_top5)):
        interval = binomtest(hits, seen).proportion_ci(0.95, method="wilson")
        found |= {name: hits / seen, f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}
    return found


def accuracy_measurements(tally: Tally) -> tuple[Measurement, ...]:
    """Return what a finished evaluation found.

    Raises:
        ProbeError: no image could be read.
    """
    if not tally.seen and tally.unreadable_named:
        raise ProbeError(f"none of the {tally.unreadable} images can be read, {tally.unreadable_named[0][0]} first")
    found = shares(tally.correct, tally.correct_top5, tally.seen)
    accuracy = (
        Measurement(metric=name, value=found[name], ci_low=found[f"{name}_low"], ci_high=found[f"{name}_high"])
        for name in ("top1", "top5")
    )
    return (
        *accuracy,
        Measurement(metric="evaluated_images", value=tally.seen),
        Measurement(metric="unreadable_images", value=tally.unreadable),
        Measurement(metric="evaluation_images_per_s", value=tally.seen / max(tally.took_s, 1e-9)),
        Measurement(metric="data_wait_share", value=min(1.0, tally.waited_s / max(tally.took_s, 1e-9))),
    )
