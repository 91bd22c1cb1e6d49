"""Test the C++ kernel of layer norm against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from native_cases import needs_compiler
from torch import nn

from sema.inference.builder import FormBuilder
from sema.inference.forms import LayerNormForm, form_of
from sema.kernels.layer_norm import layer_norm_native

CPU = torch.device("cpu")


@needs_compiler
@pytest.mark.parametrize("shape", [(2, 5, 7, 16), (1, 197, 384), (3, 48), (96,), (1, 0, 32)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_kernel_is_the_definition(shape, dtype, tolerance, offset):
    torch.manual_seed(0)
    norm = nn.LayerNorm(shape[-1], eps=1e-3).requires_grad_(False)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (torch.randn(shape) + offset).to(dtype)
    form = form_of(norm, FormBuilder(CPU, dtype))
    assert isinstance(form, LayerNormForm)
    centred = x.double() - x.double().mean(dim=-1, keepdim=True)
    normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
    expected = normed * norm.weight.double() + norm.bias.double()
    got = form.to(dtype)(x)
    assert got.dtype == dtype
    assert got.shape == x.shape
    assert (got.double() - expected).norm() <= (1 + offset) * tolerance * expected.norm()


@needs_compiler
def test_tokens_of_a_transposed_map_are_normed():
    x, norm = torch.randn(2, 32, 5, 3).permute(0, 2, 3, 1), nn.LayerNorm(32)
    got = layer_norm_native(x, norm.weight.detach(), norm.bias.detach(), norm.eps)
    torch.testing.assert_close(got, norm(x).detach())
    assert got.is_contiguous()


class Doubled(nn.LayerNorm):
    """Does more than its base class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(20),
        nn.LayerNorm((3, 32)),
        nn.LayerNorm(32, elementwise_affine=False),
        nn.LayerNorm(32, bias=False),
        Doubled(32),
    ],
)
def test_other_norms_stay(norm):
    builder = FormBuilder(CPU, torch.float32)
    assert form_of(norm, builder) is norm
    assert builder.kernels == ({"layer_norm: 20 channels": "torch"} if norm.normalized_shape == (20,) else {})
    assert form_of(nn.LayerNorm(32), FormBuilder(CPU, torch.float64)).__class__ is nn.LayerNorm


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(2, 20), "weight": torch.ones(20), "bias": torch.ones(20)},
        {"x": torch.zeros(2, 32).double()},
        {"weight": torch.ones(16)},
        {"bias": torch.ones(32).bfloat16()},
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    given = {"x": torch.zeros(2, 32), "weight": torch.ones(32), "bias": torch.ones(32)} | change
    with pytest.raises(ValueError, match="native layer norm takes"):
        layer_norm_native(given.pop("x"), **given, eps=1e-5)
