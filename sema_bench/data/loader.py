"""Load batches of samples in worker processes, in order, and measure the time spent waiting for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sema_bench.data.base import Sample, Unreadable
from sema_bench.data.preprocess import MEAN, STD

#: More processes than this did not help.
_MOST_WORKERS = 8


class Batch(NamedTuple):
    """Images that are used together, and those that could not be decoded."""

    pixels: Tensor  # (n, H, W, 3), 0 to 255
    labels: Tensor  # (n,), or masks (n, H, W)
    unreadable: list[Unreadable]

    @property
    def images(self) -> int:
        """Number of images, unreadable ones included."""
        return len(self.labels) + len(self.unreadable)


class Batches:
    """Iterate over samples once, in batches and in order; ``waited_s`` is the time spent waiting for batches.

    Args:
        sample: gives the image of an index; runs in worker processes.
        indices: images in order.
        batch: images of one batch; the last one may be smaller.
        workers: processes that draw or decode; 0: this process does; None: spare CPUs.
        pin: use pinned memory, from which a GPU copies without waiting.
    """

    def __init__(
        self, sample: Callable[[int], Sample], indices: Sequence[int], *, batch: int, workers: int | None, pin: bool
    ) -> None:
        workers = _spare_cpus() if workers is None else workers
        dataset: Any = indices  # the worker that collates turns each into its image
        self._loader: DataLoader[int] = DataLoader(
            dataset,
            batch_size=batch,
            num_workers=workers,
            collate_fn=partial(_collate, sample),
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


def _spare_cpus() -> int:
    """Count the CPUs to decode with, shared among the processes that torchrun has started."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    together = max(1, int(local)) if local.isdecimal() else 1
    spare = (len(os.sched_getaffinity(0)) - 2 * together) // together
    return max(0, min(spare, _MOST_WORKERS))


def normalised(
    pixels: Tensor, *, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format
) -> Tensor:
    """Normalise ``pixels`` (n, H, W, 3), 0 to 255, to a model's input (n, 3, H, W) on the device."""
    images = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2)
    mean = torch.tensor(MEAN, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=device).mul(255).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).to(dtype=dtype, memory_format=memory_format)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal: loading ends with the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(sample: Callable[[int], Sample], indices: Sequence[int]) -> Batch:
    pixels, labels, unreadable = [], [], []
    for each in map(sample, indices):
        if isinstance(each, Unreadable):
            unreadable.append(each)
        else:
            pixels.append(each[0])
            labels.append(each[1])
    stacked = np.stack(pixels) if pixels else np.empty((0, 1, 1, 3), dtype=np.uint8)
    return Batch(torch.from_numpy(stacked), torch.from_numpy(np.asarray(labels, dtype=np.int64)), unreadable)
