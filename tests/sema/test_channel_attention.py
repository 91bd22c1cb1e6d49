"""Test the C++ kernel of XCiT's, SimA's and InLine's attention against their references in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from native_cases import SHAPES, needs_compiler

import sema
from sema.inference.attentions import ChannelForm, ConvolutionalForm, InLineForm
from sema.inference.builder import FormBuilder
from sema.inference.forms import form_of
from sema.kernels.channel_attention import attend_through_channels_native
from sema.models.cvt import ConvolutionalAttention

CPU = torch.device("cpu")
QUADRATIC = "channel_attention: products in quadratic order"


def attention(name: str, dim: int = 32, heads: int = 2) -> torch.nn.Module:
    torch.manual_seed(0)
    made = sema.create_attention(name, dim=dim, num_heads=heads).eval().requires_grad_(False)
    if name == "xca":
        made.temperature.uniform_(0.5, 4)
    return made


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["xca", "sima", "inline"])
def test_the_kernel_is_the_definition(shape, name, native_dtype):
    *grid, dim, heads = shape
    made = attention(name, dim, heads)
    form, x = form_of(copy.deepcopy(made), FormBuilder(CPU, native_dtype)).to(native_dtype), torch.randn(*grid, dim)
    assert isinstance(form, ChannelForm | InLineForm) == (name != "inline" or dim % 16 == 0)
    expected = made.double().reference(x.double())
    with torch.inference_mode():
        got = form(x.to(native_dtype))
    assert got.dtype == native_dtype
    tolerance = {torch.float32: 5e-6, torch.bfloat16: 2e-2}[native_dtype]
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
@pytest.mark.parametrize("name", ["xca", "sima"])
def test_channels_of_zeros_are_divided_by_the_smallest_norm(name):
    made, x = attention(name), torch.zeros(1, 3, 4, 32)
    made.qkv.bias.zero_()
    made.qkv.bias[64:] = 1.0  # of the values
    form = ChannelForm(copy.deepcopy(made), FormBuilder(CPU, torch.float32))
    with torch.inference_mode():
        torch.testing.assert_close(form(x), made(x))


@needs_compiler
@pytest.mark.parametrize("grid", [(24, 23), (7, 6)])
@pytest.mark.parametrize("class_tokens", [0, 1])
@pytest.mark.parametrize("mechanism", ["sima", "softmax"])
def test_queries_may_outnumber_keys(grid, class_tokens, mechanism):
    torch.manual_seed(0)
    made = ConvolutionalAttention(32, 2, mechanism=mechanism, class_tokens=class_tokens).eval().requires_grad_(False)
    form, x = (
        form_of(copy.deepcopy(made), FormBuilder(CPU, torch.float32)),
        torch.randn(2, grid[0] * grid[1] + class_tokens, 32),
    )
    assert isinstance(form, ConvolutionalForm)
    expected = made.double()(x.double(), grid)
    with torch.inference_mode():
        assert (form(x, grid).double() - expected).norm() <= 5e-6 * expected.norm()


@needs_compiler
def test_threads_change_nothing():
    q, k, v = torch.randn(1, 40, 42, 96).chunk(3, dim=-1)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(attend_through_channels_native(q, k, v, 2, torch.ones(2)))
    finally:
        torch.set_num_threads(before)
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


@needs_compiler
def test_plain_operators_run_where_they_are_better():
    made = sema.create_attention("sima", dim=32, num_heads=2)
    for tokens, taken in ((15, False), (16, True)):
        shapes = {made.qkv: torch.Size([2, 1, tokens, 32])}
        builder = FormBuilder(CPU, torch.float32, shapes)
        assert isinstance(form_of(copy.deepcopy(made, {id(made.qkv): made.qkv}), builder), ChannelForm) == taken
        assert builder.kernels == ({"channel_attention": "C++"} if taken else {QUADRATIC: "torch"})
    quadratic = sema.create_attention("sima", dim=32, num_heads=2, product_order="quadratic")
    builder = FormBuilder(CPU, torch.float32)
    assert not isinstance(form_of(quadratic, builder), ChannelForm)
    assert builder.kernels == {QUADRATIC: "torch"}
    assert not isinstance(form_of(attention("xca"), FormBuilder(CPU, torch.float64)), ChannelForm)
    builder = FormBuilder(CPU, torch.float32)
    assert not isinstance(form_of(attention("inline", 24), builder), InLineForm)
    assert builder.kernels == {"channel_attention: 24 channels": "torch"}


@pytest.mark.parametrize(
    "change",
    [
        {"q": torch.zeros(3, 3, 32)},
        {"k": torch.zeros(1, 3, 1, 32)},
        {"q": torch.zeros(2, 3, 3, 32)},
        {"q": torch.zeros(1, 3, 3, 32).double()},
        {"v": torch.zeros(1, 1, 1, 32).expand(1, 3, 3, 32)},
        {"q": torch.zeros(1, 0, 3, 32)},
        dict.fromkeys("kv", torch.zeros(1, 0, 3, 32)),
        {"heads": 0},
        {"heads": 5},
        {"temperatures": torch.ones(3)},
        {"temperatures": torch.ones(2, dtype=torch.bfloat16)},
        {"q": torch.zeros(1, 3, 2, 32), "temperatures": torch.ones(2)},
        {"add": torch.zeros(1, 3, 3, 32), "temperatures": torch.ones(2)},
        {"add": torch.zeros(1, 3, 3, 16)},
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    given = {name: torch.zeros(1, 3, 3, 32) for name in "qkv"} | {"heads": 2} | change
    with pytest.raises(ValueError, match="native channel attention takes"):
        attend_through_channels_native(given.pop("q"), **given)
