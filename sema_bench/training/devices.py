"""Which part of a training a process is: alone, or one of several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sema_bench.errors import UsageError


@dataclass(frozen=True)
class Distributed:
    """A process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        device: where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and talks."""
        return self.rank == 0

    def wrapped(self, model: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """Return ``model`` such that gradients are averaged over all processes.

        Args:
            model: on the device of this place.
            some_unused: some of its parameters may get no gradient.
        """
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=some_unused)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value`` over all processes."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Return the sums of ``counts`` over all processes."""
        if self.world == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64, device=self.device)
        dist.all_reduce(total)
        return [int(count) for count in total]

    def any(self, flag: bool) -> bool:
        """Tell whether ``flag`` is set in any process."""
        return self.sum([int(flag)])[0] > 0

    def take_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the leading process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """End what ``take_place`` began."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def take_place(device: str) -> Distributed:
    """Return this process's place, and meet the others where torchrun has started some.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:<index>``; with several processes each takes the card of its local rank.

    Raises:
        UsageError: torchrun's variables are incomplete, or there are fewer cards than processes.
    """
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return Distributed(0, 1, torch.device(device))
        rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set, but not RANK and LOCAL_RANK, or not to numbers; start several processes with torchrun"
        ) from None
    if device.startswith("cuda"):
        if local >= torch.cuda.device_count():
            raise UsageError(f"process {local} of this machine has no card; there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local)
        place = Distributed(rank, world, torch.device("cuda", local))
    else:
        place = Distributed(rank, world, torch.device("cpu"))
    try:
        dist.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as problem:
        raise UsageError(
            f"the {world} processes do not meet ({str(problem)[:200]}); start them with torchrun"
        ) from None
    return place
