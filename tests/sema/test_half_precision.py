"""Test inference forms in half precision whose products and convolutions have weights in float32."""

from __future__ import annotations

import pytest
import torch
from native_cases import needs_bfloat16, needs_compiler, needs_mkl, needs_packed_kernels
from torch import nn

import sema
from sema.inference.blocks import MlpForm
from sema.inference.builder import FormBuilder
from sema.layers.mlp import Mlp

CPU = torch.device("cpu")


class Small(nn.Module):
    """Each kind of part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GELU())
        self.mix = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Sequential(nn.Conv2d(16, 32, 1), nn.SiLU())
        self.head = nn.Linear(32, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.point(self.mix(self.stem(image))).mean((2, 3)))


@needs_packed_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_without_kernels_has_weights_in_float32(monkeypatch, dtype):
    monkeypatch.setattr("sema.inference.builder.lacks_kernels", lambda device, dtype: True)
    torch.manual_seed(0)
    net, image = Small().eval(), torch.randn(2, 3, 16, 12)
    form = sema.optimize_for_inference(net, dtype=dtype, example_size=image.shape)
    assert form.kernels["weights"] == "float32"
    assert form.weights_bytes == 4 * sum(parameter.numel() for parameter in net.parameters())
    for given in (image, image[:, :, 4:]):
        got = form(given)
        assert got.dtype == dtype
        torch.testing.assert_close(got.float(), net(given), rtol=2e-2, atol=2e-2)


@needs_bfloat16
@needs_compiler
@pytest.mark.parametrize("kernel", ["oneDNN, float32", pytest.param("MKL", marks=needs_mkl)])
def test_a_form_in_bfloat16_may_multiply_in_float32(monkeypatch, kernel):
    monkeypatch.setattr("sema.inference.builder.fastest_product", lambda *parts, **options: kernel)
    monkeypatch.setattr("sema.inference.builder.fastest_convolution", lambda kernels, build, **given: kernels[-1])
    net, image = Small().eval(), torch.randn(2, 3, 16, 12)
    form = sema.optimize_for_inference(net, dtype=torch.bfloat16, example_size=image.shape)
    assert (form.kernels["products"], form.kernels["convolutions"]) == (kernel, "oneDNN, float32")
    in_bfloat16 = sum(parameter.numel() for parameter in net.mix.parameters())
    assert form.weights_bytes == 4 * sum(parameter.numel() for parameter in net.parameters()) - 2 * in_bfloat16
    assert form.spare_bytes == (4 * (16 * 32 + 32 * 7) if kernel == "MKL" else 0)
    for given in (image, image[:, :, 4:]):
        got = form(given)
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), net(given), rtol=2e-2, atol=2e-2)


@needs_bfloat16
def test_hidden_values_between_products_in_float32_stay_in_it(monkeypatch):
    monkeypatch.setattr("sema.inference.builder.fastest_product", lambda *parts, **options: "oneDNN, float32")
    norm, mlp, x = nn.LayerNorm(32), Mlp(32, 128), torch.randn(1, 5, 32).bfloat16()
    shapes = {mlp.fc1: x.shape, mlp.fc2: torch.Size((1, 5, 128))}
    form = MlpForm(norm, mlp, FormBuilder(CPU, torch.bfloat16, shapes, timed=True)).to(torch.bfloat16)
    with torch.inference_mode():
        assert form.fc1(x).dtype == torch.float32
        got, expected = form(x), x + mlp(norm.float()(x.float()))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=1e-2, atol=1e-2)


@needs_packed_kernels
def test_half_precision_with_kernels_and_other_devices_keep_their_dtype(monkeypatch):
    monkeypatch.setattr("sema.inference.fused.has_packed_kernels", lambda device, dtype: device.type == "cpu")
    for device in ("cpu", "cuda", "meta"):
        assert FormBuilder(torch.device(device), torch.bfloat16).weight_dtype == torch.bfloat16
