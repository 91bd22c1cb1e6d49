"""Every model against the same network written plainly, in one interleaved run.

Both hold the same weights and give the same logits. Each round times both, in random order, so that drift hits both
alike, and gives plain time / our time (above 1: ours is faster). Where the weights came to lie in memory moves that
ratio by several percent for as long as a model lives, so both are built anew several times, in turn first and second:
the figure is the median over the builds, and the spread beside it that of the builds.
"""

from __future__ import annotations

import random
import statistics
import time

import pytest
import torch
from plain import PLAIN

import sema

BUILDS, ROUNDS = 5, 2
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


def build(name: str, side: int, *, ours_first: bool) -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    """Both forms with the same weights, each with an image in the layout that it takes."""
    image = torch.randn(1, 3, side, side)
    makers = {"ours": lambda: sema.create_model(name), "plain": PLAIN[name]}
    models = {turn: makers[turn]().eval() for turn in (makers if ours_first else reversed(makers))}
    models["plain"].load_state_dict(models["ours"].state_dict())
    return {
        "ours": (models["ours"].to(memory_format=torch.channels_last), image.to(memory_format=torch.channels_last)),
        "plain": (models["plain"], image),
    }


def interleaved_ratio(turns: dict[str, tuple[torch.nn.Module, torch.Tensor]], rng: random.Random) -> float:
    """Median over the rounds of plain time / our time."""
    logits = {turn: model(x) for turn, (model, x) in turns.items()}  # the first warm-up
    torch.testing.assert_close(logits["ours"], logits["plain"], rtol=1e-3, atol=1e-3)
    for model, x in turns.values():
        model(x)
    ratios = []
    for _ in range(ROUNDS):
        order = rng.sample(list(turns), k=len(turns))
        took = {turn: min(seconds(*turns[turn]) for _ in range(2)) for turn in order}
        ratios.append(took["plain"] / took["ours"])
    return statistics.median(ratios)


@pytest.mark.parametrize("side", [224, 512])
@torch.inference_mode()
def test_forward_against_plain(benchmark, report_ratio, name: str, side: int) -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    ratios = []
    for count in range(BUILDS):
        turns = build(name, side, ours_first=count % 2 == 0)
        ratios.append(interleaved_ratio(turns, rng))
    benchmark.pedantic(turns["ours"][0], (turns["ours"][1],), rounds=5, warmup_rounds=1)
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    benchmark.extra_info |= {"plain_over_ours": ratio, "lowest": low, "highest": high, "builds": BUILDS}
    threads = torch.get_num_threads()
    report_ratio(
        f"{name} {side} batch 1 float32 {threads} threads: "
        f"plain / ours = {ratio:.3f}, {low:.3f} to {high:.3f} over {BUILDS} builds"
    )
