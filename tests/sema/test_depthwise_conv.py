"""Test the depthwise convolution in C++ against the naive one in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from native_cases import convolved, needs_compiler, run_depthwise
from torch import nn

from sema.kernels.depthwise_conv import depthwise_conv_native, is_served

ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}
#: Images, sides, channels. They cover full and partial tiles, odd rows, sides below the kernel's, and many pieces.
MAPS = [(1, 9, 16, 16), (2, 7, 7, 80), (1, 1, 1, 16), (1, 2, 25, 32), (3, 17, 3, 48)]


@needs_compiler
@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("given", [False, True], ids=["", "add"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
def test_the_depthwise_convolution_is_its_definition(shape, size, act, given, dtype, tolerance):
    conv, x, add = convolved(shape, size)
    x, add = x.to(dtype), add.to(dtype) if given else None
    got = run_depthwise(conv, x, add, act)
    expected = ACTIVATIONS[act](conv.double().reference(x.double()))
    expected = expected if add is None else expected + add.double()
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
def test_channels_of_larger_maps_are_read_in_place(monkeypatch):
    conv, x, _ = convolved((2, 9, 13, 32), 3)
    larger = torch.cat((torch.randn_like(x), x, torch.randn_like(x)), dim=-1)
    expected, weight = run_depthwise(conv, x), conv.weight[:, 0].permute(1, 2, 0).contiguous()
    monkeypatch.setattr(torch.Tensor, "contiguous", None)  # nothing may copy
    assert depthwise_conv_native(larger[..., 32:64], weight, conv.bias, None, "none").equal(expected)


@needs_compiler
def test_images_may_have_kernels_of_their_own():
    conv, x, _ = convolved((3, 9, 13, 32), 3)
    weights = torch.randn(3, 3, 3, 32)
    got = depthwise_conv_native(x, weights, conv.bias, None, "none")
    for image, weight, expected in zip(x, weights, got, strict=True):
        assert depthwise_conv_native(image[None], weight, conv.bias, None, "none").equal(expected[None])


@needs_compiler
def test_sums_are_rounded_to_the_nearest_bfloat16_ties_to_even():
    ties = torch.arange(0x3F800000, 0x3F800000 + 14 * 0x4000, 0x4000, dtype=torch.int32).view(torch.float32)
    bias = torch.cat((ties, torch.tensor([float("nan"), -float("inf")])))
    bias[:4] = torch.tensor([3.4e38, -1e-40, 0.0, -0.0])
    x = torch.zeros(1, 3, 3, 16, dtype=torch.bfloat16)
    got = depthwise_conv_native(x, torch.zeros(3, 3, 16), bias, None, "none")
    torch.testing.assert_close(got[0, 1, 1], bias.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_numbers_that_are_not_finite_stay_in_the_windows_that_see_them(act, dtype, tolerance):
    conv, x, _ = convolved((1, 5, 12, 16), 3)
    expected = run_depthwise(conv, x.to(dtype), act=act)
    infinite = () if act == "gelu" else (float("inf"), -float("inf"))  # torch gives NaN there
    for value in (float("nan"), *infinite):
        x[0, 2, 9, 3] = value
        got = run_depthwise(conv, x.to(dtype), act=act)
        seen = ACTIVATIONS[act](conv.reference(x))[0, 1:4, 8:11, 3]
        torch.testing.assert_close(got[0, 1:4, 8:11, 3].float(), seen, rtol=tolerance, atol=tolerance, equal_nan=True)
        got[0, 1:4, 8:11, 3] = expected[0, 1:4, 8:11, 3]
        assert got.equal(expected)


@needs_compiler
def test_extreme_numbers_have_the_activations_of_torch():
    x = torch.tensor([-1e38, -1e4, -88.0, -30.0, -1e-30, 0.0, 1e-30, 4.0, 6.5, 30.0, 88.0, 100.0, 1e4, 1e38, 1, -1])
    weight, bias = torch.zeros(3, 3, 16), torch.zeros(16)
    weight[1, 1] = 1
    for act, function in ACTIVATIONS.items():
        got = depthwise_conv_native(x.view(1, 1, 1, 16), weight, bias, None, act).flatten()
        torch.testing.assert_close(got, function(x), rtol=2e-6, atol=1e-6)


@needs_compiler
def test_threads_and_strides_change_no_convolution():
    conv, x, add = convolved((2, 19, 21, 96), 3)
    before = torch.get_num_threads()
    expected = run_depthwise(conv, x, add, "silu")
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert run_depthwise(conv, x, add, "silu").equal(expected)
    finally:
        torch.set_num_threads(before)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert run_depthwise(conv, turned, add, "silu").equal(expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, weight, bias, add: (x.double(), weight, bias, add),
        lambda x, weight, bias, add: (x, weight[:, :2], bias, add),
        lambda x, weight, bias, add: (x, weight.bfloat16(), bias, add),
        lambda x, weight, bias, add: (x, weight, bias[:8], add),
        lambda x, weight, bias, add: (x, weight, bias, add[:, :2]),
        lambda x, weight, bias, add: (x, weight, bias, add.bfloat16()),
        lambda x, weight, bias, add: (x.to("meta"), weight, bias, add),
        lambda x, weight, bias, add: (x[..., :8], weight[..., :8], bias[:8], add[..., :8]),
        lambda x, weight, bias, add: (x, torch.zeros(9, 9, 16), bias, add),
        lambda x, weight, bias, add: (x[0], weight, bias, add[0]),
        lambda x, weight, bias, add: (x[None], weight, bias, add[None]),
        lambda x, weight, bias, add: (x, weight, bias, add, "tanh"),
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    given = (torch.zeros(1, 4, 4, 16), torch.zeros(3, 3, 16), torch.zeros(16), torch.zeros(1, 4, 4, 16))
    with pytest.raises(ValueError, match="native depthwise convolution takes"):
        depthwise_conv_native(*(*change(*given), "none")[:5])


@pytest.mark.parametrize(
    ("options", "served"),
    [
        ({"padding": 1}, True),
        ({"padding": "same"}, True),
        ({"kernel_size": 7, "padding": 3}, True),
        ({"padding": "valid"}, False),
        ({"padding": 0}, False),
        ({"padding": 1, "stride": 2}, False),
        ({"padding": 2, "dilation": 2}, False),
        ({"padding": 1, "groups": 8}, False),
        ({"padding": 1, "padding_mode": "reflect"}, False),
        ({"kernel_size": (3, 5), "padding": (1, 2)}, False),
        ({"kernel_size": 9, "padding": 4}, False),
        ({"kernel_size": 1}, False),
        ({"padding": 1, "in_channels": 8, "out_channels": 8, "groups": 8}, False),
        ({"padding": 1, "out_channels": 32}, False),
    ],
)
def test_the_kernel_serves_depthwise_convolutions_that_keep_the_size(options, served):
    plain = {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "groups": 16}
    assert is_served(nn.Conv2d(**plain | options)) is served
