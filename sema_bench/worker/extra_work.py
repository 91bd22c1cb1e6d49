"""Slow a workload down by a known share, to test the gate: small matrix products run before each step.

The step waits for them. On CUDA their arithmetic would otherwise run beside the launches of the step, and add less than
the share.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from sema_bench.worker.workload import Workload

_SIDE = 64
_PASSES = 7
_PRODUCTS = 200


def slow_down(workload: Workload, share: float) -> None:
    """Make each step of ``workload`` take ``share`` longer, with the same output."""
    step = workload.step
    square = torch.randn(_SIDE, _SIDE, device=workload.device)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square)

    one = min(_seconds(workload, lambda: work(_PRODUCTS)) for _ in range(_PASSES)) / _PRODUCTS
    whole = statistics.median(_seconds(workload, workload.forward) for _ in range(_PASSES))
    count = max(1, round(share * whole / one))

    def slowed() -> Any:
        work(count)
        workload.synchronise()
        return step()

    workload.step = slowed


def _seconds(workload: Workload, work: Callable[[], object]) -> float:
    """Time ``work``: by CPU time on a CPU, which a neighbour does not lengthen, and by wall time on CUDA."""
    clock = time.perf_counter if workload.device.type == "cuda" else time.process_time
    workload.synchronise()
    started = clock()
    work()
    workload.synchronise()
    return clock() - started
