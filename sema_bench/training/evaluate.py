"""Test a network during training: each process takes a part of the images, with the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from sema_bench.data.datasets import TestImages
from sema_bench.errors import ProbeError
from sema_bench.training.devices import Distributed
from sema_bench.training.job import TrainingError
from sema_bench.worker.evaluation import ClassMatch, Evaluation, InputFormat, shares
from sema_bench.worker.overlap import no_areas
from sema_bench.worker.protocol import Tally

_LOOK_S = 1.0
_COUNTS = ("correct", "correct_top5", "seen", "unreadable")


def accuracy_of(
    model: nn.Module,
    images: TestImages,
    input_format: InputFormat,
    *,
    workers: int | None,
    distributed: Distributed,
    stop_asked: Callable[[], bool],
) -> dict[str, Any] | None:
    """Measure ``top1``, ``top5`` or ``miou`` with intervals and count the images; None if someone asked to stop.

    Labels are indices of the model's outputs; the model stays in eval mode. All processes take the leader's batch-norm
    statistics, as they do in the next training step anyway.
    """
    distributed.take_from_leader(model.state_dict().values())
    evaluation = Evaluation(
        model.eval(),
        images,
        ClassMatch(None, "by name"),
        input_format,
        workers=workers,
        tally=Tally(areas=tuple(no_areas(len(images.classes)).ravel().tolist()) if images.segmented else ()),
        indices=range(distributed.rank, len(images), distributed.world),
    )
    working = True
    while working:  # until all processes have finished
        ended = evaluation.advance(_LOOK_S)
        stopped, working = map(bool, distributed.sum([stop_asked(), not ended]))
        if stopped:
            return None
    counts = [getattr(evaluation.tally, name) for name in _COUNTS]
    summed = list(map(int, distributed.sum([*counts, *evaluation.tally.areas])))
    values: dict[str, Any] = dict(zip(_COUNTS, summed, strict=False))
    tally = dataclasses.replace(evaluation.tally, **values, areas=tuple(summed[len(_COUNTS) :]))
    try:
        return {**shares(tally), "evaluated_images": tally.seen, "unreadable_images": tally.unreadable}
    except ProbeError as problem:
        raise TrainingError(str(problem)) from None
