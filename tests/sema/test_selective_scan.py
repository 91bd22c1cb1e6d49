"""Test the selective scan against its definition, forward and backward, for every implementation."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types

import pytest
import torch

from sema.kernels.scan_backends import load_scan
from sema.layers import selective_scan as module
from sema.layers.selective_scan import scan_flops, selective_scan, selective_scan_reference

#: (directions, batch, P, Q, channels, states): sequences and maps, lengths that no chunk divides, one token.
SHAPES = [(2, 2, 13, 22, 5, 1), (2, 1, 1, 197, 4, 3), (1, 2, 9, 4, 6, 2), (2, 1, 1, 1, 3, 2), (1, 1, 2, 1, 3, 1)]

over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def arguments(shape, *, dtype=torch.float64, requires_grad=False):
    g, b, p, q, d, n = shape
    made = [
        torch.randn(g, b, p, q, d, dtype=dtype),
        0.3 * torch.rand(g, b, p, q, d, dtype=dtype),
        -0.1 - 2 * torch.rand(g, d, n, dtype=dtype),
        torch.randn(g, b, p, q, n, dtype=dtype),
        torch.randn(g, b, p, q, n, dtype=dtype),
    ]
    return [x.requires_grad_(requires_grad) for x in made]


@over_shapes
def test_the_scan_equals_its_definition_with_gradients(shape):
    given = arguments(shape, requires_grad=True)
    got, expected = selective_scan(*given), selective_scan_reference(*given)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    probe = torch.randn_like(got)
    for one, other in zip(*(torch.autograd.grad((y * probe).sum(), given) for y in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_channels_worked_on_in_blocks_give_the_same(monkeypatch):
    given = arguments((2, 2, 5, 7, 11, 3), requires_grad=True)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1)
    monkeypatch.setattr(module, "_FEWEST_CHANNELS", 4)
    widths = [part.stop - part.start for part in module._blocks(given[1], given[2])]
    assert widths == [4, 4, 4], "three blocks of even width; the last one ends beyond the channels"
    got, expected = selective_scan(*given), selective_scan_reference(*given)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), given) for y in (got, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_the_second_direction_is_the_first_on_the_reversed_sequence():
    given = arguments((2, 2, 1, 50, 3, 2))
    backward = selective_scan(*given)[1]
    flipped = [x[1:].flip(3) if x.ndim == 5 else x[1:] for x in given]
    torch.testing.assert_close(backward, selective_scan(*flipped)[0].flip(2), rtol=1e-12, atol=1e-12)


def test_a_map_is_scanned_in_reading_order_and_its_transpose_down_the_columns():
    given = arguments((1, 1, 4, 6, 2, 1))
    rows = selective_scan(*given)
    sequence = [x.flatten(2, 3).unsqueeze(2) if x.ndim == 5 else x for x in given]
    torch.testing.assert_close(rows.flatten(2, 3), selective_scan(*sequence).squeeze(2), rtol=1e-12, atol=1e-12)
    exchanged = [x.transpose(2, 3) if x.ndim == 5 else x for x in given]
    copied = [x.contiguous() for x in exchanged]
    torch.testing.assert_close(selective_scan(*exchanged), selective_scan(*copied), rtol=0, atol=0)


def test_float32_stays_near_the_float64_definition_on_a_long_sequence():
    given = arguments((2, 1, 1, 3136, 4, 2))
    got = selective_scan(*(x.float() for x in given)).double()
    expected = selective_scan_reference(*given)
    assert (got - expected).norm() / expected.norm() < 2e-6


def test_states_that_vanish_or_stay_give_no_nan():
    u, delta, a, b, c = arguments((2, 1, 1, 100, 2, 2))
    for factor in (0.0, 1e4):
        y = selective_scan(u, factor * delta, a, b, c)
        expected = selective_scan_reference(u, factor * delta, a, b, c)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [256, 1024])
def test_the_backward_pass_keeps_the_inputs_and_nothing_per_state(length):
    given = arguments((2, 1, 1, length, 8, 16), requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        selective_scan(*given)
    assert sum(kept) == sum(x.numel() for x in given)


def test_half_precision_is_computed_in_float32():
    given = arguments((2, 1, 3, 5, 4, 2), dtype=torch.bfloat16)
    y = selective_scan(*given)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, selective_scan(*(x.float() for x in given)), rtol=0, atol=0)


def test_flops_are_nine_per_state_and_one_each_for_skip_and_gate():
    assert scan_flops(49, 96, 16, skip=False) == 9 * 49 * 96 * 16
    assert scan_flops(49, 96, 1, skip=True, gate=True) == 11 * 49 * 96


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": (3, 1, 1, 5, 2)}, "one or two directions"),
        ({"delta": (1, 5, 2)}, "one or two directions"),
        ({"delta": (1, 1, 1, 0, 2)}, "one or two directions"),
        ({"u": (1, 1, 1, 4, 2)}, r"u must be \(1, 1, 1, 5, 2\); got \(1, 1, 1, 4, 2\)"),
        ({"a": (1, 3, 4)}, r"a must be \(1, 2, 4\)"),
        ({"b": (1, 1, 1, 5, 3)}, r"b must be \(1, 1, 1, 5, 4\)"),
        ({"c": (1, 1, 5, 4)}, r"c must be \(1, 1, 1, 5, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, message):
    shapes = {
        "u": (1, 1, 1, 5, 2),
        "delta": (1, 1, 1, 5, 2),
        "a": (1, 2, 4),
        "b": (1, 1, 1, 5, 4),
        "c": (1, 1, 1, 5, 4),
    }
    with pytest.raises(ValueError, match=message):
        selective_scan(*(torch.zeros(changes.get(name, shape)) for name, shape in shapes.items()))


def test_a_scan_is_chosen_by_name_and_never_replaced():
    assert load_scan("torch") is selective_scan
    with pytest.raises(ValueError, match="scan must be one of auto, torch, native, triton, mamba_ssm; got 'cuda'"):
        load_scan("cuda")
    for name in ("triton", "mamba_ssm"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(ImportError, match=f"needs the package {name}, which is not installed"):
                load_scan(name)


@over_shapes
def test_mamba_ssm_is_given_sequences_in_scan_order(monkeypatch, shape):
    """``mamba_ssm`` takes (B, ·, L) and runs forward only; a stand-in with its signature computes the definition."""

    def selective_scan_fn(u, delta, a, b, c):
        as_map = [x.transpose(1, 2)[None, :, None] for x in (u, delta, b, c)]
        y = selective_scan_reference(as_map[0], as_map[1], a[None], as_map[2], as_map[3])
        return y[0, :, 0].transpose(1, 2)

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    given = arguments(shape)
    torch.testing.assert_close(load_scan("mamba_ssm")(*given), selective_scan_reference(*given), rtol=1e-11, atol=1e-11)


_IN_TRITON = """
import torch
from sema.kernels.scan_backends import load_scan
from sema.layers.selective_scan import selective_scan_reference
torch.manual_seed(0)
for g, b, p, q, d, n in [(2, 2, 5, 7, 3, 1), (2, 1, 1, 150, 4, 3), (1, 1, 1, 1, 70, 2)]:
    given = [torch.randn(g, b, p, q, d), 0.3 * torch.rand(g, b, p, q, d), -torch.rand(g, d, n) - 0.1]
    given = [x.double().requires_grad_() for x in (*given, *(torch.randn(g, b, p, q, n) for _ in range(2)))]
    got, expected = load_scan("triton")(*given), selective_scan_reference(*given)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(y.square().sum(), given) for y in (got, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
print("equal")
"""


@pytest.mark.interpreter
def test_the_triton_kernels_equal_the_definition_in_triton_s_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", _IN_TRITON],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.triton
def test_triton_refuses_tensors_that_are_not_on_cuda(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="scan='triton' runs on CUDA; got tensors on cpu"):
        load_scan("triton")(*arguments((1, 1, 1, 4, 2, 1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@over_shapes
@pytest.mark.parametrize(
    "name", [name for name in ("torch", "triton", "mamba_ssm") if name == "torch" or importlib.util.find_spec(name)]
)
def test_every_scan_on_cuda_equals_the_definition(name, shape):
    given = arguments(shape, requires_grad=True)
    expected = selective_scan_reference(*given)
    on_gpu = [x.detach().float().cuda().requires_grad_() for x in given]
    got = load_scan(name)(*on_gpu)
    assert (got.cpu().double() - expected).norm() / expected.norm() < 1e-5
    for one, other in zip(
        torch.autograd.grad(got.square().sum(), on_gpu),
        torch.autograd.grad(expected.square().sum(), given),
        strict=True,
    ):
        assert (one.cpu().double() - other).norm() <= 1e-4 * other.norm()
