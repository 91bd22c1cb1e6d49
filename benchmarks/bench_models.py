"""Time every model in every mode against the same network written plainly, in one interleaved run.

The modes are those of ``--mode``: eager, compile, optimized, and optimized in bfloat16. All have the same weights and
give the same logits; a model without a plain form is compared with eager. ``-k 'sema_tiny and 448'`` selects cells,
``--modes eager,optimized`` selects forms.
"""

from __future__ import annotations

import functools

import pytest
import torch
from interleaved import channels_last, ratios_to_first
from plain import PLAIN, SMALLEST

import sema

BUILDS = 3
SIDES = (224, 448, 896)
#: The relative error allowed for bfloat16: 8 bits, through tens of blocks.
TOLERANCES = {"bfloat16": 1e-1}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("name", sema.list_models() if metafunc.config.getoption("--all-sizes") else SMALLEST)


@pytest.mark.parametrize("side", SIDES)
@torch.inference_mode()
def test_modes(benchmark, report_ratio, pytestconfig: pytest.Config, name: str, side: int) -> None:
    torch.manual_seed(0)
    weights = sema.create_model(name).state_dict()
    image = torch.randn(1, 3, side, side)

    def ours() -> torch.nn.Module:
        model = sema.create_model(name).eval()
        model.load_state_dict(weights)
        return model

    def plain():
        model = PLAIN[name]().eval()
        model.load_state_dict(weights)
        return model, image

    def optimized(dtype: torch.dtype):
        return channels_last(sema.optimize_for_inference(ours(), dtype=dtype, example_size=tuple(image.shape)), image)

    @functools.cache  # it takes minutes
    def compiled():
        torch.compiler.reset()
        model, shown = channels_last(ours(), image)
        return torch.compile(model, dynamic=False, fullgraph=True), shown

    makers = {"plain": plain} if name in PLAIN else {}
    makers |= {
        "eager": lambda: channels_last(ours(), image),
        "compile": compiled,
        "optimized": lambda: optimized(torch.float32),
        "bfloat16": lambda: optimized(torch.bfloat16),
    }
    if wanted := pytestconfig.getoption("--modes"):
        makers = {mode: make for mode, make in makers.items() if mode in ("plain", *wanted.split(","))}
    ratios = ratios_to_first(makers, builds=BUILDS, tolerances=TOLERANCES)
    first, *others = makers
    benchmark.pedantic(lambda: None, rounds=1)  # the ratios are the result
    benchmark.extra_info |= {f"{first}_over_{mode}": ratios[mode].median for mode in others}
    divided = ", ".join(f"{mode} {ratios[mode]}" for mode in others)
    report_ratio(f"{name} {side} batch 1 {torch.get_num_threads()} threads: {first} / {divided}")
