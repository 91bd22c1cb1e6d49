"""Every model against the same network written plainly, in one interleaved run.

Both hold the same weights and give the same logits. Each round times both, in random order, so that drift hits both
alike; the figure is the median over the rounds of plain time / our time (above 1: ours is faster).
"""

from __future__ import annotations

import random
import time

import pytest
import torch
from plain import PLAIN

import sema
from sema_bench.analysis.bootstrap import median_interval

ROUNDS, FEWEST_ROUNDS, BUDGET_S = 15, 7, 60.0
#: The smallest size of each family; the others run with ``-k``-selected names and ``--all-sizes``.
SMALLEST = (  # noqa: SIM905
    "sema_tiny mila_tiny deit_small vminet_xs sima_small_12_p16 xcit_small_12_p16 sima_deit_small cvt_13 sima_cvt_13 "
    "swin_tiny flatten_swin_tiny inline_swin_tiny vmamba_tiny_s1l8 vim_tiny"
).split()


def seconds(model: torch.nn.Module, image: torch.Tensor) -> float:
    started = time.perf_counter()
    model(image)
    return time.perf_counter() - started


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = list(PLAIN) if metafunc.config.getoption("--all-sizes") else SMALLEST
    metafunc.parametrize("name", names)


@pytest.mark.parametrize("side", [224, 512])
def test_forward_against_plain(benchmark, report_ratio, name: str, side: int) -> None:
    torch.manual_seed(0)
    ours = sema.create_model(name).eval()
    plain = PLAIN[name]().eval()
    plain.load_state_dict(ours.state_dict())
    ours = ours.to(memory_format=torch.channels_last)
    image = torch.randn(1, 3, side, side)
    turns = {"ours": (ours, image.contiguous(memory_format=torch.channels_last)), "plain": (plain, image)}
    order = list(turns)
    rng = random.Random(0)
    ratios: list[float] = []
    with torch.inference_mode():
        logits = {turn: model(x) for turn, (model, x) in turns.items()}  # the first warm-up
        for model, x in turns.values():
            model(x)
        torch.testing.assert_close(logits["ours"], logits["plain"], rtol=1e-3, atol=1e-3)
        started = time.perf_counter()
        while len(ratios) < FEWEST_ROUNDS or (len(ratios) < ROUNDS and time.perf_counter() - started < BUDGET_S):
            rng.shuffle(order)
            took = {turn: min(seconds(*turns[turn]) for _ in range(2)) for turn in order}
            ratios.append(took["plain"] / took["ours"])
        benchmark.pedantic(ours, (turns["ours"][1],), rounds=5, warmup_rounds=1)
    ratio, low, high = median_interval(ratios, seed=0)
    benchmark.extra_info |= {"plain_over_ours": ratio, "ci_low": low, "ci_high": high, "rounds": len(ratios)}
    threads = torch.get_num_threads()
    report_ratio(f"{name} {side} batch 1 float32 {threads} threads: plain / ours = {ratio:.3f} [{low:.3f}, {high:.3f}]")
