"""The accuracy of a network in training: each process tests a part of the images, all of them the same weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sema_bench.data.datasets import TestImages
from sema_bench.training.average import MovingAverage
from sema_bench.training.devices import Distributed
from sema_bench.training.job import TrainingError
from sema_bench.worker.evaluation import Evaluation, Tally, match_classes, shares

_MOST_AT_ONCE = 64
_LOOK_S = 1.0


def accuracy_of(
    model: nn.Module,
    average: MovingAverage | None,
    images: TestImages,
    classes: tuple[str, ...],
    *,
    place: Distributed,
    size: tuple[int, int],
    batch: int,
    workers: int,
    stop_asked: Callable[[], bool],
) -> dict[str, Any] | None:
    """Return ``top1``, ``top5`` with their intervals and the counts of images, None if someone asked to stop.

    The model is left as it was.

    Args:
        model: in train mode, on the device of ``place``.
        average: tested in place of the model's own weights.
        images: what it is tested on.
        classes: names of its outputs.
        place: which part is this process's.
        size: (H, W).
        batch: images that fit at once.
        workers: processes that prepare images.
        stop_asked: looked at about every second.

    Raises:
        TrainingError: none of the images can be read.
    """
    with _tested_weights(model, average, place):
        evaluation = Evaluation(
            model,
            images,
            match_classes(images.classes, classes, len(classes)),
            size=size,
            batch=min(batch, _MOST_AT_ONCE),
            workers=workers,
            device=place.device,
            dtype=torch.float32,
            memory_format=torch.channels_last,
            tally=Tally(),
            indices=range(place.rank, len(images), place.world),
        )
        working = True
        while working:  # until the last process has seen its part
            ended = evaluation.advance(_LOOK_S)
            stopped, working = map(bool, place.sum([stop_asked(), not ended]))
            if stopped:
                return None
    tally = evaluation.tally
    counts = place.sum([tally.correct, tally.correct_top5, tally.seen, tally.unreadable])
    correct, correct_top5, seen, unreadable = counts
    if not seen:
        first = f", {tally.unreadable_named[0][0]} first" if tally.unreadable_named else ""
        raise TrainingError(f"none of the {unreadable} test images can be read{first}")
    return {**shares(correct, correct_top5, seen), "evaluated_images": seen, "unreadable_images": unreadable}


@contextlib.contextmanager
def _tested_weights(model: nn.Module, average: MovingAverage | None, place: Distributed) -> Iterator[None]:
    """Hold what is tested in ``model``, in eval mode, the same in all processes: statistics of batch norm are not."""
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        if average:
            model.load_state_dict(average.state)
        place.take_from_leader(model.state_dict().values())
        model.eval()
        yield
    finally:
        model.load_state_dict(kept)
        model.train()
