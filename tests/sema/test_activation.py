"""Test the activations in C++ against torch's."""

from __future__ import annotations

import pytest
import torch
from native_cases import needs_compiler

from sema.kernels import activation
from sema.kernels.activation import ACTIVATIONS, activate


@needs_compiler
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("size", [(1,), (7,), (3, 5, 11), (9000,), (2, 3, 4, 5)])
def test_float32_is_the_definition(act, size):
    x = 8 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected = ACTIVATIONS[act](x.double()).float()
    got = activate(x, act)
    assert got is x, "in place"
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bfloat16_is_float32_rounded_once(act):
    x = 4 * torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = activate(x.float(), act).bfloat16()
    assert activate(x, act).equal(expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_numbers_that_are_not_finite_stay_where_they_are(act, dtype):
    x = torch.linspace(-3, 3, 37).to(dtype)
    expected = activate(x.clone(), act)
    for value, result in ((float("nan"), float("nan")), (float("inf"), 6.0 if act == "relu6" else float("inf"))):
        given = x.clone()
        given[5] = given[36] = value
        got = activate(given, act)
        torch.testing.assert_close(got[[5, 36]].float(), torch.tensor([result] * 2), equal_nan=True)
        got[[5, 36]] = expected[[5, 36]]
        assert got.equal(expected)


@needs_compiler
def test_threads_change_nothing():
    x = torch.randn(50_001, generator=torch.Generator().manual_seed(0))
    expected, before = activate(x.clone(), "gelu"), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert activate(x.clone(), "gelu").equal(expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "x",
    [torch.randn(6, 8)[:, ::2], torch.randn(4, 5).double(), torch.randn(3, 4).half(), torch.randn(1, 8, 3, 2)[..., 1:]],
)
def test_other_tensors_are_left_to_torch(x):
    before = x.clone()
    torch.testing.assert_close(activate(x, "silu"), torch.nn.functional.silu(before))
    assert x.equal(before)
    assert activate(x.to("meta"), "gelu").shape == x.shape


@needs_compiler
def test_images_in_channels_last_memory_are_dense():
    x = torch.randn(2, 6, 5, 3).to(memory_format=torch.channels_last)
    expected = torch.nn.functional.gelu(x)
    got = activate(x, "gelu")
    assert got is x
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_compiler_sees_torchs_activation():
    """It can fuse it with the operators around it."""
    x = torch.randn(5, 7)
    exported = torch.export.export(Activated(), (x,))
    assert "aten.gelu" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), torch.nn.functional.gelu(x), rtol=0, atol=0)


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_gradients_and_traces_are_those_of_torch():
    x = torch.randn(5, 7, requires_grad=True)
    activate(2 * x, "gelu").sum().backward()
    expected = torch.autograd.functional.jacobian(lambda x: torch.nn.functional.gelu(2 * x).sum(), x.detach())
    torch.testing.assert_close(x.grad, expected)
    traced = torch.jit.trace(Activated(), (torch.randn(5, 7),))
    assert "aten::gelu" in str(traced.inlined_graph)


class Activated(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return activate(x, "gelu")


def test_without_a_compiler_torch_computes_it(monkeypatch):
    monkeypatch.setattr(activation, "_library", lambda: None)
    x = torch.randn(5, 7)
    before = x.clone()
    assert activate(x, "gelu").equal(torch.nn.functional.gelu(before))
