"""The Triton kernel of window attention: the same numbers as the plain form, whatever the grid."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from triton_support import in_triton_interpreter

import sema
from sema.attention.sema import SemaAttention
from sema.layers.window_backends import load_window_kernel

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the package triton")

_IN_TRITON = """
import torch
from sema.attention.sema import SemaAttention
torch.manual_seed(0)
for grid, dim, heads, options in [
    ((14, 14), 64, 2, {}),
    ((15, 9), 48, 2, {"pooling": "none"}),
    ((3, 20), 30, 3, {"window_size": 4, "lepe": False}),
    ((8, 8), 16, 1, {"window_size": 8, "pooling": "max", "scale": 1.0}),
    ((1, 1), 20, 1, {"lepe": False, "pooling": "none"}),
]:
    plain = SemaAttention(dim, heads, **options)
    kernel = SemaAttention(dim, heads, backend="triton", **options)
    kernel.load_state_dict(plain.state_dict())
    x = torch.randn(2, *grid, dim, requires_grad=True)
    got, expected = kernel(x), plain.reference(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(got)
    for one, other in zip(
        torch.autograd.grad((got * weight).sum(), [x, *kernel.parameters()]),
        torch.autograd.grad((expected * weight).sum(), [x, *plain.parameters()]), strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
print("equal")
"""


@needs_triton
def test_the_kernel_equals_the_definition_in_triton_s_interpreter() -> None:
    assert in_triton_interpreter(_IN_TRITON) == "equal"


@needs_triton
def test_the_kernel_counts_what_the_plain_form_counts() -> None:
    with torch.device("meta"):
        models = [sema.create_model(f"sema_micro[sema,backend={name}]") for name in ("torch", "triton")]
        image = torch.empty(1, 3, 96, 160)
    counts = []
    for model in models:
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            model(image)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


@needs_triton
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(1, 8, 8, 32), {}, "runs on CUDA; got tensors on cpu"),
        (torch.zeros(1, 8, 8, 32, device="meta", dtype=torch.float64), {}, "got torch.float64"),
        (torch.zeros(1, 8, 8, 32, device="meta"), {"window_size": 17}, "at most 256 tokens; got 17²"),
    ],
)
def test_what_the_kernel_cannot_do_is_refused(
    x: torch.Tensor, options: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    attention = SemaAttention(32, 1, backend="triton", **options).to(x)
    with pytest.raises(ValueError, match=message):
        attention(x)


def test_a_backend_is_known_and_there() -> None:
    assert load_window_kernel("auto") is load_window_kernel("torch") is None
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton; got 'cuda'"):
        SemaAttention(32, 1, backend="cuda")
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ImportError, match="needs the package triton"):
            SemaAttention(32, 1, backend="triton")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grid", [(56, 56), (15, 9), (7, 50), (1, 1)])
def test_the_kernel_equals_the_definition_on_cuda(grid: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = SemaAttention(64, 2).double().cuda()
    kernel = SemaAttention(64, 2, backend="triton").to(dtype).cuda()
    kernel.load_state_dict(plain.state_dict())
    x = torch.randn(2, *grid, 64, dtype=torch.float64, device="cuda")
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(kernel(x.to(dtype)).double(), plain.reference(x), rtol=tolerance, atol=tolerance)
