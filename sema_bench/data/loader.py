"""Samples to batches: drawn or decoded by worker processes, in order, and the time that was spent waiting for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sema_bench.data.base import Pixels
from sema_bench.data.datasets import Unreadable
from sema_bench.data.preprocess import MEAN, STD

#: More processes than this have not been seen to help.
_MOST_WORKERS = 8

Sample = tuple[Pixels, int] | Unreadable


class Batch(NamedTuple):
    """What arrived together.

    Attributes:
        pixels: (n, H, W, 3), 0 to 255.
        labels: (n,).
        unreadable: what should have been here and could not be decoded.
    """

    pixels: Tensor
    labels: Tensor
    unreadable: list[Unreadable]

    @property
    def asked_for(self) -> int:
        """Images that were asked for."""
        return len(self.labels) + len(self.unreadable)


class _Samples(Dataset[Sample]):
    def __init__(self, sample: Callable[[int], Sample], indices: Sequence[int]) -> None:
        self._sample = sample
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Sample:
        return self._sample(self._indices[position])


class Batches:
    """Goes through samples once, batch by batch, in order.

    Args:
        sample: gives the image of an index; it is called in worker processes.
        indices: which ones, in which order.
        batch: images of one batch; the last one may be smaller.
        workers: processes that draw or decode; 0: this one does.
        pin: hold batches in memory from which a GPU copies without waiting.

    Attributes:
        waited_s: time for which a batch was asked for and not there.
    """

    def __init__(
        self, sample: Callable[[int], Sample], indices: Sequence[int], *, batch: int, workers: int, pin: bool
    ) -> None:
        self._loader = DataLoader(
            _Samples(sample, indices),
            batch_size=batch,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self._iterator: Iterator[Batch] | None = None
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            if self._iterator is None:
                self._iterator = iter(self._loader)
            return next(self._iterator)
        finally:
            self.waited_s += time.perf_counter() - started


def default_workers() -> int:
    """Return how many processes decode beside the one that computes: none where there are no CPUs to spare.

    Where torchrun has started several processes on this machine, each gets its share.
    """
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    together = max(1, int(told)) if told.isdecimal() else 1
    spare = (len(os.sched_getaffinity(0)) - 2 * together) // together
    return max(0, min(spare, _MOST_WORKERS))


def normalised(
    pixels: Tensor, *, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """Return ``pixels`` (n, H, W, 3), 0 to 255, as a model takes them: (n, 3, H, W), normalised on the device."""
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    mean = torch.tensor(MEAN, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).mul(255).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).to(dtype=dtype, memory_format=memory_format)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; who prepares images ends when the one that asks for them does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(samples: Sequence[Sample]) -> Batch:
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
    if not readable:
        return Batch(torch.empty(0, 1, 1, 3, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), unreadable)
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in readable]))
    return Batch(pixels, torch.tensor([label for _, label in readable]), unreadable)
