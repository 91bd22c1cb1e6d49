"""SEMA-T in its fastest form against what a user would pick instead, in one interleaved run.

Its rivals of this library in their fastest forms, and timm's models as their users run them best: eager, and compiled
with weights frozen, which packs them for the same library of products.
"""

from __future__ import annotations

import functools

import pytest
import torch
from interleaved import Form, channels_last, ratios_to_first

import sema

BUILDS = 3
RIVALS = ("swin_tiny", "deit_small", "mila_tiny", "vmamba_tiny_s1l8")
TIMM = ("swin_tiny_patch4_window7_224", "deit_small_patch16_224", "convnext_tiny")


@pytest.mark.parametrize("side", [224, 448, 896])
@torch.inference_mode()
def test_what_a_user_would_pick(
    benchmark, report_ratio, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    timm = pytest.importorskip("timm", reason="needs timm: pip install 'sema-bench[timm]'")
    torch.manual_seed(0)
    image = torch.randn(1, 3, side, side)

    def ours(name: str) -> Form:
        model = sema.create_model(name).eval()
        return channels_last(sema.optimize_for_inference(model, example_size=tuple(image.shape)), image)

    def theirs(name: str) -> Form:
        size = {} if name == "convnext_tiny" else {"img_size": side}
        return channels_last(timm.create_model(name, **size), image)

    @functools.cache  # it takes minutes
    def compiled(name: str) -> Form:
        torch.compiler.reset()
        model, shown = theirs(name)
        form = torch.compile(model, dynamic=False)
        with torch.inference_mode(False), torch.no_grad():
            form(shown.clone())
        return form, shown

    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "freezing", True)
    makers = {name: functools.partial(ours, name) for name in ("sema_tiny", *RIVALS)}
    makers |= {f"timm {name}, eager": functools.partial(theirs, name) for name in TIMM}
    if "compile" in (pytestconfig.getoption("--modes") or "compile"):
        makers |= {f"timm {name}, compiled": functools.partial(compiled, name) for name in TIMM}
    ratios = {name: ratio.inverse() for name, ratio in ratios_to_first(makers, builds=BUILDS, tolerances=None).items()}
    model, shown = ours("sema_tiny")
    benchmark.pedantic(model, (shown,), rounds=5, warmup_rounds=1)
    benchmark.extra_info |= {f"{name}_over_sema_tiny": ratio.median for name, ratio in ratios.items()}
    for name, ratio in list(ratios.items())[1:]:
        report_ratio(f"{side} batch 1 {torch.get_num_threads()} threads: {name} / sema_tiny = {ratio}")
