"""Test a network in training: each process takes a part of the images, with the same weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from sema_bench.data.datasets import TestImages
from sema_bench.errors import ProbeError
from sema_bench.training.devices import Distributed
from sema_bench.training.job import TrainingError
from sema_bench.training.state import MovingAverage
from sema_bench.worker.evaluation import Evaluation, InputFormat, match_classes, shares
from sema_bench.worker.protocol import Tally

_MOST_AT_ONCE = 64
_LOOK_S = 1.0


@dataclass(frozen=True)
class AccuracyTest:
    """How to test a network in training; ``classes`` are its outputs, and ``batch`` images fit at once."""

    images: TestImages
    classes: tuple[str, ...]
    size: tuple[int, int]
    batch: int
    workers: int | None


def accuracy_of(
    model: nn.Module,
    average: MovingAverage | None,
    test: AccuracyTest,
    *,
    distributed: Distributed,
    stop_asked: Callable[[], bool],
) -> dict[str, Any] | None:
    """Measure ``top1``, ``top5`` with their intervals and count the images; None if someone asked to stop.

    The model does not change.

    Args:
        model: in train mode, on the device of ``distributed``.
        average: weights to test in place of the model's.
        stop_asked: called about every second.

    Raises:
        TrainingError: none of the images can be read.
    """
    with _tested_weights(model, average, distributed):
        evaluation = Evaluation(
            model,
            test.images,
            match_classes(test.images.classes, test.classes, len(test.classes)),
            InputFormat(test.size, min(test.batch, _MOST_AT_ONCE), distributed.device),
            workers=test.workers,
            tally=Tally(),
            indices=range(distributed.rank, len(test.images), distributed.world),
        )
        working = True
        while working:  # until all processes have finished
            ended = evaluation.advance(_LOOK_S)
            stopped, working = map(bool, distributed.sum([stop_asked(), not ended]))
            if stopped:
                return None
    tally = evaluation.tally
    counts = distributed.sum([tally.correct, tally.correct_top5, tally.seen, tally.unreadable])
    correct, correct_top5, seen, unreadable = counts
    tally = dataclasses.replace(tally, correct=correct, correct_top5=correct_top5, seen=seen, unreadable=unreadable)
    try:
        return {**shares(tally), "evaluated_images": seen, "unreadable_images": unreadable}
    except ProbeError as problem:
        raise TrainingError(str(problem)) from None


@contextlib.contextmanager
def _tested_weights(model: nn.Module, average: MovingAverage | None, distributed: Distributed) -> Iterator[None]:
    """Load the weights to test, in eval mode; all processes take the leader's, whose batch norm statistics differ."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        if average:
            model.load_state_dict(average.state)
        distributed.take_from_leader(model.state_dict().values())
        model.eval()
        yield
    finally:
        model.load_state_dict(before)
        model.train()
