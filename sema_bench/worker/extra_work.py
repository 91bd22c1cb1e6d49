"""A known slowdown, to test the gate with: small products before each forward pass, as many as take a share of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload

_SIDE = 64
_PASSES = 7
_PRODUCTS = 200


def slow_down(workload: Workload, share: float) -> None:
    """Make each forward pass of ``workload`` take ``share`` longer; its output is what it was."""
    workload.__dict__.pop("forward", None)  # it may be a copy of one that was slowed down for another size
    forward = workload.forward
    square = torch.randn(_SIDE, _SIDE, device=workload.device)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square)

    one = min(_seconds(workload, lambda: work(_PRODUCTS)) for _ in range(_PASSES)) / _PRODUCTS
    whole = sorted(_seconds(workload, forward) for _ in range(_PASSES))[_PASSES // 2]
    count = max(1, round(share * whole / one))

    def slowed() -> torch.Tensor:
        work(count)
        return forward()

    workload.forward = slowed  # type: ignore[method-assign]


def _seconds(workload: Workload, act: Any) -> float:
    """Return CPU time of this process on a CPU, which a neighbour does not lengthen; wall time on CUDA."""
    clock = time.perf_counter if workload.device.type == "cuda" else time.process_time
    workload.synchronise()
    started = clock()
    act()
    workload.synchronise()
    return clock() - started
