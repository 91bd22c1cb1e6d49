"""Processes that train together: one alone, or several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sema_bench.errors import UsageError


@dataclass(frozen=True)
class Distributed:
    """One process among those that train together.

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
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrapped(self, model: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """Wrap ``model`` to average gradients over all processes; with ``some_unused`` parameters may lack one."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=some_unused)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Leave the gradients of a ``wrapped`` model unaveraged, for all but the last part of a batch."""
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """Average ``value`` over all processes."""
        if self.world == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world

    def sum(self, counts: Sequence[int]) -> list[int]:
        """Sum each of ``counts`` over all processes."""
        if self.world == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.int64, device=self.device)
        dist.all_reduce(total)
        return list(map(int, total))

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
        """Leave the group that ``join_processes`` joined."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_processes(device: str) -> Distributed:
    """Join the processes that torchrun has started, if any; each of several takes the card of its local rank.

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
        device, backend = f"cuda:{local}", "nccl"
    else:
        device, backend = "cpu", "gloo"
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as problem:
        raise UsageError(
            f"the {world} processes do not meet ({str(problem)[:200]}); start them with torchrun"
        ) from None
    return Distributed(rank, world, torch.device(device))
