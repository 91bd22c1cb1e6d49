"""Our SEMA-T and MILA-T against the same networks written as research code, in one interleaved run.

Both hold the same weights and give the same logits. Each round times both, in random order, so that drift hits both
alike; the figure is the median over the rounds of research time / our time (above 1: ours is faster).
"""

from __future__ import annotations

import random
import time

import pytest
import research_style
import torch

import sema
from sema_bench.analysis.bootstrap import median_interval

ROUNDS = 25


def seconds(model: torch.nn.Module, image: torch.Tensor) -> float:
    started = time.perf_counter()
    model(image)
    return time.perf_counter() - started


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["sema_tiny", "mila_tiny"])
def test_forward_against_research_style(benchmark, report_ratio, name: str, batch: int) -> None:
    torch.manual_seed(0)
    ours = sema.create_model(name).eval()
    research = getattr(research_style, f"research_{name}")().eval()
    research.load_state_dict(ours.state_dict())
    ours = ours.to(memory_format=torch.channels_last)
    image = torch.randn(batch, 3, 224, 224)
    turns = {"ours": (ours, image.contiguous(memory_format=torch.channels_last)), "research": (research, image)}
    order = list(turns)
    rng = random.Random(0)
    ratios: list[float] = []
    with torch.inference_mode():
        logits = {side: model(x) for side, (model, x) in turns.items()}
        torch.testing.assert_close(logits["ours"], logits["research"], rtol=1e-4, atol=1e-4)
        for warmup in (True, True, *[False] * ROUNDS):
            rng.shuffle(order)
            took = {side: min(seconds(*turns[side]) for _ in range(2)) for side in order}
            if not warmup:
                ratios.append(took["research"] / took["ours"])
        benchmark.pedantic(ours, (turns["ours"][1],), rounds=5, warmup_rounds=1)
    ratio, low, high = median_interval(ratios, seed=0)
    benchmark.extra_info |= {"research_over_ours": ratio, "ci_low": low, "ci_high": high, "rounds": ROUNDS}
    threads = torch.get_num_threads()
    report_ratio(
        f"{name} 224 batch {batch} float32 {threads} threads: research / ours = {ratio:.3f} [{low:.3f}, {high:.3f}]"
    )
