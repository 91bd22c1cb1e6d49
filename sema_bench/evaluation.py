"""Top-1 and top-5 of a model on labelled images, piece by piece: it can be watched, stopped and gone on with."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sema_bench.data.loader import Batches, normalised
from sema_bench.data.opened import TestImages
from sema_bench.probes.base import ProbeError
from sema_bench.schema import Measurement

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


class ClassMatch(NamedTuple):
    """How labels of the data become outputs of the model, and how that was decided."""

    outputs: Tensor | None
    how: str


def match_classes(data: Sequence[str], model: Sequence[str] | None, outputs: int) -> ClassMatch:
    """Match classes by name where the model knows its names, by their order where it does not.

    Args:
        data: names of the data's classes; a label is an index into them.
        model: names of the model's outputs, if its checkpoint has them.
        outputs: how many the model has.

    Raises:
        ProbeError: a class that the model does not know, or counts that differ.
    """
    if model is None:
        if len(data) != outputs:
            raise ProbeError(
                f"the data has {len(data)} classes and the model {outputs}, whose names its checkpoint does not tell; "
                "give data with a folder for each class of the model (empty ones count)"
            )
        return ClassMatch(None, "by order: the checkpoint names no classes")
    index = {name: position for position, name in enumerate(model)}
    unknown = [name for name in data if name not in index]
    if unknown:
        raise ProbeError(
            f"{len(unknown)} of the data's {len(data)} classes are unknown to the checkpoint, {unknown[0]!r} first; "
            f"it knows {len(model)}: {', '.join(model[:3])}{', …' if len(model) > 3 else ''}"
        )
    return ClassMatch(torch.tensor([index[name] for name in data]), "by name")


class Evaluation:
    """Evaluates one model at one size.

    Args:
        model: (B, 3, H, W) → (B, classes), in eval mode on ``device``.
        images: what it is tested on.
        match: labels → outputs.
        size: (H, W).
        batch: images of one forward pass; the last one is filled up, so that every pass has the same shape.
        workers: processes that draw or decode.
        device, dtype, memory_format: of the input.
        tally: where to go on; empty at the start.
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
    ) -> None:
        self._model = model
        self._match = match
        self._batch = batch
        self._normalised = functools.partial(normalised, device=device, dtype=dtype, memory_format=memory_format)
        self.tally = tally
        self._batches = Batches(
            lambda index: images.sample(index, size),
            range(tally.position, len(images)),
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


def accuracy_measurements(tally: Tally) -> tuple[Measurement, ...]:
    """Return what a finished evaluation found; shares with their Wilson 95 % intervals.

    Raises:
        ProbeError: no image could be read.
    """
    from scipy.stats import binomtest

    if not tally.seen:
        named = f", {tally.unreadable_named[0][0]} first" if tally.unreadable_named else ""
        raise ProbeError(f"none of the {tally.unreadable} images can be read{named}")

    def share(metric: str, correct: int) -> Measurement:
        interval = binomtest(correct, tally.seen).proportion_ci(0.95, method="wilson")
        return Measurement(
            metric=metric, value=correct / tally.seen, ci_low=float(interval.low), ci_high=float(interval.high)
        )

    return (
        share("top1", tally.correct),
        share("top5", tally.correct_top5),
        Measurement(metric="evaluated_images", value=tally.seen),
        Measurement(metric="unreadable_images", value=tally.unreadable),
        Measurement(metric="evaluation_images_per_s", value=tally.seen / max(tally.took_s, 1e-9)),
        Measurement(metric="data_wait_share", value=min(1.0, tally.waited_s / max(tally.took_s, 1e-9))),
    )
