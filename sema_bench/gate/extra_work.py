"""A known slowdown, to test the gate with: small products before each forward pass, as many as take a share of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sema_bench.subject import Subject

_SIDE = 64
_PASSES = 7
_PRODUCTS = 200


def slow_down(subject: Subject, share: float) -> None:
    """Make each forward pass of ``subject`` take ``share`` longer; its output is what it was."""
    subject.__dict__.pop("forward", None)  # it may be a copy of one that was slowed down for another size
    forward = subject.forward
    square = torch.randn(_SIDE, _SIDE, device=subject.device)

    def work(count: int) -> None:
        for _ in range(count):
            torch.mm(square, square)

    one = min(_seconds(subject, lambda: work(_PRODUCTS)) for _ in range(_PASSES)) / _PRODUCTS
    whole = sorted(_seconds(subject, forward) for _ in range(_PASSES))[_PASSES // 2]
    count = max(1, round(share * whole / one))

    def slowed() -> torch.Tensor:
        work(count)
        return forward()

    subject.forward = slowed  # type: ignore[method-assign]


def _seconds(subject: Subject, act: Any) -> float:
    """Return CPU time of this process on a CPU, which a neighbour does not lengthen; wall time on CUDA."""
    clock = time.perf_counter if subject.device.type == "cuda" else time.process_time
    subject.synchronise()
    started = clock()
    act()
    subject.synchronise()
    return clock() - started
