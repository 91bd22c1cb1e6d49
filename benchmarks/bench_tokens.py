"""Does a token cost more in a large image? Optimized forms at growing sizes, in one interleaved run."""

from __future__ import annotations

import pytest
import torch
from interleaved import Form, Ratios, channels_last, ratios_to_first

import sema

BUILDS = 5
SIDES = (224, 448, 896, 1024)


@pytest.mark.parametrize("name", ["sema_tiny", "mila_tiny", "swin_tiny", "deit_small"])
@torch.inference_mode()
def test_time_per_token(benchmark, report_ratio, name: str) -> None:
    torch.manual_seed(0)
    model = sema.create_model(name).eval()

    def form(side: int) -> Form:
        image = torch.randn(1, 3, side, side)
        return channels_last(sema.optimize_for_inference(model, example_size=tuple(image.shape)), image)

    makers = {str(side): lambda side=side: form(side) for side in SIDES}
    ratios = {side: ratio.inverse() for side, ratio in ratios_to_first(makers, builds=BUILDS, tolerances=None).items()}
    smallest, image = form(SIDES[0])
    benchmark.pedantic(smallest, (image,), rounds=5, warmup_rounds=1)
    for side, ratio in list(ratios.items())[1:]:
        tokens = (int(side) / SIDES[0]) ** 2
        each = Ratios(ratio.median / tokens, ratio.low / tokens, ratio.high / tokens)
        benchmark.extra_info[f"per_token_{side}_over_{SIDES[0]}"] = each.median
        report_ratio(f"{name} batch 1 {torch.get_num_threads()} threads: time per token, {side} / {SIDES[0]} = {each}")
