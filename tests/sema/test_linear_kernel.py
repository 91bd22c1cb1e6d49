"""Test the C++ kernels of linear attention, MILA's and the focused one against their references in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from native_cases import needs_compiler
from torch import Tensor

import sema
from sema.attention.focused import FocusedLinearAttention
from sema.inference.attentions import FocusedForm, LinearForm
from sema.inference.builder import FormBuilder
from sema.inference.forms import form_of
from sema.kernels.activation import ACTIVATIONS, Gate
from sema.kernels.focused_features import focus_native
from sema.kernels.linear_attention import attend_linearly_native

CPU = torch.device("cpu")


def attention(name: str, dim: int, heads: int, **options: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return sema.create_attention(name, dim=dim, num_heads=heads, **options).eval().requires_grad_(False)


def given(grid: tuple[int, ...], dim: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(*grid, 2 * dim if name == "qk" else dim) for name in ("qk", "v", "onto", "gate")}


#: Images, height, width, channels, heads. Heads of 32 and 64 channels; tokens around multiples of pieces and chunks.
SHAPES = [(2, 5, 7, 64, 2), (1, 8, 8, 128, 2), (1, 1, 3, 128, 4), (2, 24, 23, 64, 2), (1, 32, 16, 64, 2)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "options"), [("linear", {}), ("mila", {}), ("mila", {"lepe": False})])
@pytest.mark.parametrize("act", ["", "none", "silu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 1.5e-2)])
def test_the_kernel_is_the_definition(shape, name, options, act, dtype, tolerance):
    *grid, dim, heads = shape
    made, x, gate = attention(name, dim, heads, **options), torch.randn(*grid, dim), torch.randn(*grid, dim)
    form = form_of(copy.deepcopy(made), FormBuilder(CPU, dtype))
    assert isinstance(form, LinearForm)
    expected = made.double().reference(x.double())
    expected = expected * ACTIVATIONS[act](gate.double()) if act else expected
    with torch.inference_mode():
        got = form(x.to(dtype), Gate(gate.to(dtype), act) if act else None)
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
@pytest.mark.parametrize("features", ["elu", "rotated", "given"])
def test_channels_of_larger_maps_are_read_and_written_in_place(features):
    maps = given((2, 9, 4), 64)
    larger = torch.cat([*maps.values()], dim=-1)
    parts = dict(zip(maps, larger.split([x.shape[-1] for x in maps.values()], dim=-1), strict=True))
    for each in (maps, parts):
        attend_linearly_native(
            each["qk"], each["v"], onto=each["onto"], num_heads=2, features=features, gate=Gate(each["gate"])
        )
    assert larger.equal(torch.cat([*maps.values()], dim=-1))


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 1.5e-2)])
def test_the_focused_kernels_are_the_definition(shape, power, dtype, tolerance):
    *grid, dim, heads = shape
    torch.manual_seed(0)
    made = FocusedLinearAttention(dim, heads, token_grid=(grid[1], 8), focusing_factor=power).eval()
    made.requires_grad_(False)
    for table in (made.positional_encoding, made.scale):
        torch.nn.init.normal_(table)
    form, x = form_of(copy.deepcopy(made), FormBuilder(CPU, dtype)), torch.randn(*grid, dim)
    assert isinstance(form, FocusedForm)
    expected = made.double().reference(x.double())
    with torch.inference_mode():
        got = form.to(dtype)(x.to(dtype))
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    "change",
    [
        {"qk": torch.zeros(3, 3, 128)},
        {"qk": torch.zeros(1, 3, 3, 64)},
        {"qk": torch.zeros(1, 3, 3, 128).double()},
        {"positions": torch.zeros(1, 3, 4, 64)},
        {"positions": torch.zeros(1, 3, 3, 64).bfloat16()},
        {"rates": torch.ones(1, 64)},
        {"power": 0},
    ],
)
def test_queries_and_keys_that_cannot_be_focused_are_refused(change):
    given = {"qk": torch.zeros(1, 3, 3, 128), "positions": torch.zeros(1, 3, 3, 64), "rates": torch.ones(64)}
    given |= {"power": 3} | change
    with pytest.raises(ValueError, match="native focused features take"):
        focus_native(given.pop("qk"), **given)


@needs_compiler
def test_threads_change_nothing():
    maps, before, outputs = given((1, 40, 40), 64), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = maps["onto"].clone()
            attend_linearly_native(maps["qk"], maps["v"], onto=out, num_heads=2, features="rotated")
            outputs.append(out)
    finally:
        torch.set_num_threads(before)
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dim", "heads", "dtype", "reason"),
    [
        ("linear", 32, 2, torch.float32, "heads of 16 channels"),
        ("mila", 32, 2, torch.float32, "heads of 16 channels"),
        ("mila", 32, 1, torch.float32, "rotary positions with an odd number of heads"),
        ("focused", 32, 2, torch.float32, "heads of 16 channels"),
        ("linear", 32, 1, torch.float64, None),
    ],
)
def test_plain_operators_run_where_the_kernel_does_not_fit(name, dim, heads, dtype, reason):
    builder = FormBuilder(CPU, dtype)
    assert not isinstance(form_of(attention(name, dim, heads), builder), LinearForm)
    assert builder.kernels.get(f"linear_attention: {reason}") == ("torch" if reason else None)


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 0},
        {"num_heads": 4},
        {"num_heads": 1, "features": "rotated"},
        {"features": "relu"},
        {"qk": torch.zeros(1, 3, 3, 64)},
        {"v": torch.zeros(3, 3, 64)},
        {"v": torch.zeros(1, 3, 3, 64, dtype=torch.bfloat16)},
        {"onto": torch.zeros(1, 3, 3, 64).transpose(1, 2)},
        {"gate": Gate(torch.zeros(1, 3, 3, 64), "tanh")},
        {"gate": Gate(torch.zeros(1, 3, 3, 32))},
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    maps = given((1, 3, 3), 64)
    arguments = maps | {"num_heads": 2, "features": "elu", "gate": None} | change
    with pytest.raises(ValueError, match="native linear attention takes"):
        attend_linearly_native(arguments.pop("qk"), arguments.pop("v"), **arguments)
