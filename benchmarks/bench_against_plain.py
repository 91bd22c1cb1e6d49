"""Time every model against the same network written plainly, in one interleaved run.

Both have the same weights and give the same logits.
"""

from __future__ import annotations

import pytest
import torch
from interleaved import channels_last, ratios_to_first
from plain import PLAIN, SMALLEST

import sema

BUILDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = list(PLAIN) if metafunc.config.getoption("--all-sizes") else SMALLEST
    metafunc.parametrize("name", names)


@pytest.mark.parametrize("side", [224, 512])
@torch.inference_mode()
def test_forward_against_plain(benchmark, report_ratio, name: str, side: int) -> None:
    torch.manual_seed(0)
    weights = sema.create_model(name).state_dict()
    image = torch.randn(1, 3, side, side)

    def plain():
        model = PLAIN[name]().eval()
        model.load_state_dict(weights)
        return model, image

    def ours():
        model = sema.create_model(name)
        model.load_state_dict(weights)
        return channels_last(model, image)

    ratio = ratios_to_first({"plain": plain, "ours": ours}, builds=BUILDS, tolerances={})["ours"]
    model, shown = ours()
    benchmark.pedantic(model, (shown,), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"plain_over_ours": ratio.median, "lowest": ratio.low, "highest": ratio.high}
    report_ratio(f"{name} {side} batch 1 float32 {torch.get_num_threads()} threads: plain / ours = {ratio}")
