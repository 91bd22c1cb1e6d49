"""Processes that train together: one alone, or several that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from sema_bench.errors import UsageError


@dataclass(frozen=True)
class Distributed:
    """One of ``world`` processes that train together, each on its own device."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """True if this process writes files and shows progress."""
        return self.rank == 0

    @property
    def cards(self) -> list[str]:
        """The devices that this process holds for the group: the first process of a machine takes all, in order.

        Two groups that shared cards could otherwise wait for each other.
        """
        if self.world == 1:
            return [str(self.device)]
        count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        first = os.environ.get("LOCAL_RANK") == "0"
        return [f"{self.device.type}:{index}" for index in range(count)] if first else []

    def synchronised(self, model: nn.Module) -> nn.Module:
        """Make the batch norms of ``model`` take their statistics over all processes; torch can only do so on GPUs."""
        if self.world == 1:
            return model
        if self.device.type == "cpu":
            raise UsageError("torch has no sync_batch_norm on a CPU; train in one process, or drop it from the recipe")
        synchronised: nn.Module = convert_sync_batchnorm(model)
        return synchronised

    def wrapped(self, model: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """Wrap ``model`` to average gradients over all processes; ``some_unused``: parameters may lack a gradient."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids, find_unused_parameters=some_unused)

    def autocast(self, amp: str) -> Any:
        """Compute in the dtype that a recipe's ``amp`` names."""
        return torch.autocast(self.device.type, getattr(torch, amp, torch.float32), enabled=amp != "off")

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sum each of ``values`` over all processes."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def take_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite ``tensors`` with those of the leading process."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()

    def leave(self) -> None:
        """Leave the group that ``join_processes`` joined."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_processes(device: str) -> Distributed:
    """Join the processes that torchrun has started, if any; each of several takes the card of its local rank."""
    try:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return Distributed(0, 1, torch.device(device))
        rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    except (KeyError, ValueError):
        raise UsageError(
            "WORLD_SIZE is set, but RANK or LOCAL_RANK is missing or not a number; start the processes with torchrun"
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
            f"the {world} processes cannot connect ({str(problem)[:200]}); start them with torchrun"
        ) from None
    return Distributed(rank, world, torch.device(device))
