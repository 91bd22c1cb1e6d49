"""Every model against the same network written plainly, in one interleaved run.

Both hold the same weights and give the same logits.
"""

from __future__ import annotations

import pytest
import torch
from interleaved import channels_last, ratios_to_first
from plain import PLAIN

import sema

BUILDS = 5
#: The smallest size of each family; the others run with ``-k``-selected names and ``--all-sizes``.
SMALLEST = (  # noqa: SIM905
    "sema_tiny mila_tiny deit_small vminet_xs sima_small_12_p16 xcit_small_12_p16 sima_deit_small cvt_13 sima_cvt_13 "
    "swin_tiny flatten_swin_tiny inline_swin_tiny vmamba_tiny_s1l8 vim_tiny"
).split()


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
    benchmark.pedantic(*_as_call(ours()), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {"plain_over_ours": ratio.median, "lowest": ratio.low, "highest": ratio.high}
    report_ratio(f"{name} {side} batch 1 float32 {torch.get_num_threads()} threads: plain / ours = {ratio}")


def _as_call(form):
    model, image = form
    return model, (image,)
