"""Time the selective scan against the loop over tokens that defines it, forward and with gradients, interleaved.

The result is the loop's time / our time, the median over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sema.layers.selective_scan import selective_scan, selective_scan_reference
from sema_bench.statistics import median_interval

ROUNDS = 7
#: Name → (directions, batch, P, Q, channels, states): one pair of directions of a block at 224 or 512.
SHAPES = {
    "vmamba_tiny stage 1 at 224": (2, 1, 56, 56, 96, 1),
    "vmamba_tiny stage 1 at 512": (2, 1, 128, 128, 96, 1),
    "vim_tiny at 224": (2, 1, 1, 197, 384, 16),
    "vim_tiny at 512": (2, 1, 1, 1025, 384, 16),
}

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def arguments(shape: tuple[int, ...]) -> list[Tensor]:
    g, b, p, q, d, n = shape
    torch.manual_seed(0)
    inputs = [torch.randn(g, b, p, q, d), 0.1 * torch.rand(g, b, p, q, d), -torch.rand(g, d, n) - 0.1]
    return [*inputs, torch.randn(g, b, p, q, n), torch.randn(g, b, p, q, n)]


def forward(scan: Scan, given: list[Tensor]) -> float:
    with torch.inference_mode():
        started = time.perf_counter()
        scan(*given)
        return time.perf_counter() - started


def forward_backward(scan: Scan, given: list[Tensor]) -> float:
    given = [x.requires_grad_() for x in given]
    started = time.perf_counter()
    torch.autograd.grad(scan(*given).sum(), given)
    return time.perf_counter() - started


#: Gradients only at 224: autograd through a loop of 16384 steps takes minutes.
CASES = [(name, forward) for name in SHAPES] + [(name, forward_backward) for name in SHAPES if "224" in name]


@pytest.mark.parametrize(("name", "measure"), CASES)
def test_scan_against_the_loop(benchmark, report_ratio, name: str, measure) -> None:
    given = arguments(SHAPES[name])
    torch.testing.assert_close(selective_scan(*given), selective_scan_reference(*given), rtol=1e-4, atol=1e-4)
    measure(selective_scan, given)
    ours, ratios = [], []
    for _ in range(ROUNDS):
        ours.append(min(measure(selective_scan, given) for _ in range(3)))
        ratios.append(measure(selective_scan_reference, given) / ours[-1])
    benchmark.pedantic(measure, (selective_scan, given), rounds=5)
    ratio, low, high = median_interval(ratios, seed=0)
    benchmark.extra_info |= {"loop_over_ours": ratio, "ci_low": low, "ci_high": high, "rounds": ROUNDS}
    report_ratio(
        f"{name}, {measure.__name__}, float32 {torch.get_num_threads()} threads: loop / ours = {ratio:.1f} "
        f"[{low:.1f}, {high:.1f}], ours {1e3 * sorted(ours)[ROUNDS // 2]:.2f} ms"
    )
