"""Test the C++ kernel of VMI-SA against its reference in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from native_cases import needs_compiler

import sema
from sema.inference.attentions import VmiForm
from sema.inference.builder import FormBuilder
from sema.kernels.token_sum import add_token_sum_native

CPU = torch.device("cpu")


def attention(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    made = sema.create_attention("vmi", dim=24, num_heads=1, token_grid=(5, 7), **options).eval().requires_grad_(False)
    made.stack.copy_(torch.tensor([0.7, 1.3]))
    return made


@needs_compiler
@pytest.mark.parametrize("grid", [(5, 7), (3, 4), (13, 10), (1, 1)])
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
def test_the_kernel_is_the_definition(grid, add, dtype, tolerance):
    made, x = attention(expansion=2), torch.randn(3, *grid, 24)
    form = VmiForm(copy.deepcopy(made), FormBuilder(CPU, dtype))
    assert form.is_native
    more = torch.randn(3, *grid, 24) if add else None
    expected = made.double().reference(x.double())
    expected = expected if more is None else expected + more.double()
    with torch.inference_mode():
        got = form(x.to(dtype), add=None if more is None else more.to(dtype))
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
def test_threads_change_nothing():
    features, weights, before, outputs = torch.randn(2, 20, 17, 64), torch.randn(340), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(add_token_sum_native(features, weights, torch.tensor([0.5, 2.0])))
    finally:
        torch.set_num_threads(before)
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


@needs_compiler
def test_torchs_operators_run_where_the_kernel_does_not_fit():
    builder, x = FormBuilder(CPU, torch.float32), torch.randn(2, 6, 5, 24)
    for options, channels in (({"masked": True, "expansion": 2}, 48), ({"expansion": 1}, 24)):
        made = attention(**options)
        form = VmiForm(copy.deepcopy(made), builder)
        assert not form.is_native
        assert builder.kernels[f"token_sum: masked, or {channels} channels"] == "torch"
        torch.testing.assert_close(form(x), made(x), rtol=1e-4, atol=1e-5)
    assert VmiForm(attention(expansion=2), builder).is_native, "parts that do not fit exclude no others"


@pytest.mark.parametrize(
    "change",
    [
        {"features": torch.zeros(3, 3, 64)},
        {"features": torch.zeros(1, 3, 3, 48)},
        {"features": torch.zeros(1, 3, 3, 64).double()},
        {"features": torch.zeros(1, 3, 64, 3).transpose(2, 3)},
        {"weights": torch.zeros(8)},
        {"weights": torch.zeros(9).bfloat16()},
        {"stack": torch.zeros(3)},
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    given = {"features": torch.zeros(1, 3, 3, 64), "weights": torch.zeros(9), "stack": torch.ones(2)} | change
    with pytest.raises(ValueError, match="native token sum takes"):
        add_token_sum_native(*given.values())
