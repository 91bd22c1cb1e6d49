"""Time alternatives to the optimized form: each model in every mode, and SEMA-T against timm's models, cell by cell.

Each cell is one interleaved run. Its ratios are time / the cell's ``optimized`` time; above 1, ``optimized`` is faster.
Finished cells are in pytest's cache, so a stopped run resumes with the others; ``--cache-clear`` starts over.
``-k 'sema_tiny and 224 and float32'`` selects cells, ``--modes eager,compile-frozen`` selects modes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.config
from interleaved import Form, channels_last, ratios_to_first
from plain import SMALLEST
from torch import nn
from torch._dynamo.utils import counters

import sema

BUILDS = 3
TIMM = ("swin_tiny_patch4_window7_224", "deit_small_patch16_224", "convnext_tiny")
SIDES = (224, 448, 896)
DTYPES = (torch.float32, torch.bfloat16)


def in_modes(make: Callable[[], nn.Module], image: torch.Tensor, *, ours: bool) -> dict[str, Callable[[], Form]]:
    """Map each mode of a network to the function that builds it."""

    def eager() -> Form:
        return channels_last(make().to(image.dtype), image)

    def optimized() -> Form:
        return channels_last(sema.optimize_for_inference(make(), dtype=image.dtype, example_size=image.shape), image)

    @functools.cache  # it takes minutes
    def compiled(form_of: Callable[[], Form], *, frozen: bool) -> Form:
        model, shown = form_of()

        def call(image: torch.Tensor) -> torch.Tensor:
            return model(image)

        # Graphs belong to code objects: a second network of the same class would run the graph of the first.
        call.__code__ = call.__code__.replace()
        form = torch.compile(call, dynamic=False, fullgraph=True)
        graphs = counters["stats"]["unique_graphs"]
        with torch._inductor.config.patch(freezing=frozen):
            form(shown)
        assert counters["stats"]["unique_graphs"] == graphs + 1
        return form, shown

    stock: dict[str, Callable[[], Form]] = {
        "eager": eager,
        "compile": lambda: compiled(eager, frozen=False),
        "compile-frozen": lambda: compiled(eager, frozen=True),
    }
    both = {"compile-optimized": lambda: compiled(optimized, frozen=True)}
    return {"optimized": optimized, **stock, **both} if ours else stock


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", SMALLEST)
@torch.inference_mode()
def test_what_a_user_would_pick(
    benchmark: Any, report_ratio: Any, pytestconfig: pytest.Config, name: str, side: int, dtype: torch.dtype
) -> None:
    cell = f"{name} {side} {str(dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    key = f"user_choices/{torch.__version__}/{cell}".replace(" ", "_")
    lines = pytestconfig.cache.get(key, [])
    if not lines:
        torch.compiler.reset()
        torch.manual_seed(0)
        image = torch.randn(1, 3, side, side).to(dtype)
        makers = in_modes(lambda: sema.create_model(name).eval(), image, ours=True)
        if name == "sema_tiny":
            timm = pytest.importorskip("timm", reason="needs timm: pip install 'sema-bench[timm]'")
            for rival in TIMM:
                size = {} if rival == "convnext_tiny" else {"img_size": side}
                modes = in_modes(functools.partial(timm.create_model, rival, **size), image, ours=False)
                makers |= {f"timm {rival}, {mode}": make for mode, make in modes.items()}
        if wanted := pytestconfig.getoption("--modes"):
            chosen = ("optimized", *wanted.split(","))
            makers = {mode: make for mode, make in makers.items() if mode.rpartition(", ")[2] in chosen}
        ratios = ratios_to_first(makers, builds=BUILDS, tolerances=None)
        lines = [f"{cell}: {mode} / optimized = {ratio.inverse()}" for mode, ratio in list(ratios.items())[1:]]
        if not wanted:
            pytestconfig.cache.set(key, lines)
    benchmark.pedantic(lambda: None, rounds=1)  # the ratios are the result
    for line in lines:
        report_ratio(line)
