"""Test the C++ kernel of softmax attention against the references in float64."""

from __future__ import annotations

import copy
import ctypes
from types import SimpleNamespace

import pytest
import torch
from native_cases import SHAPES, needs_compiler

import sema
from sema.inference import builder as builders
from sema.inference import choices
from sema.inference.attentions import SoftmaxForm
from sema.inference.builder import FormBuilder
from sema.inference.forms import form_of
from sema.kernels.library import load_library
from sema.kernels.pairs import attention_of
from sema.kernels.softmax_attention import softmax_attention_native

CPU = torch.device("cpu")


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_the_kernel_is_the_definition(shape, scale, native_dtype):
    *grid, dim, heads = shape
    torch.manual_seed(0)
    made = sema.create_attention("softmax", dim=dim, num_heads=heads, scale=scale).eval().requires_grad_(False)
    form, x = form_of(copy.deepcopy(made), FormBuilder(CPU, native_dtype)), torch.randn(*grid, dim)
    assert isinstance(form, SoftmaxForm)
    expected = made.double().reference(x.double())
    with torch.inference_mode():
        got = form(x.to(native_dtype))
    assert got.dtype == native_dtype
    tolerance = {torch.float32: 5e-6, torch.bfloat16: 2e-2}[native_dtype]
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
@pytest.mark.parametrize("faster", [False, True])
def test_pairs_are_multiplied_where_that_is_faster(monkeypatch, faster):
    library = SimpleNamespace(sema_x_float32="float32", sema_x_bfloat16="bfloat16", sema_x_pairs="pairs")
    monkeypatch.setattr("sema.kernels.pairs.pairs_are_faster", lambda: faster)
    even, odd, wide = (
        attention_of(library, "sema_x", dtype, depth=depth)
        for dtype, depth in ((torch.bfloat16, 16), (torch.bfloat16, 5), (torch.float32, 16))
    )
    assert (even, odd, wide) == ("pairs" if faster else "bfloat16", "bfloat16", "float32")


@needs_compiler
def test_the_time_of_pairs_is_measured():
    library = load_library("pairs")
    library.sema_share_of_time.restype = ctypes.c_double
    shares = [library.sema_share_of_time() for _ in range(3)]
    has_pairs = hasattr(load_library("softmax_attention"), "sema_softmax_pairs")
    assert all(0.1 < share < 10 for share in shares) if has_pairs else shares == [0.0] * 3


@needs_compiler
def test_scores_of_any_size_are_taken(native_dtype):
    q, k, v = (100 * torch.randn(1, 1, 130, 32, dtype=torch.float64).to(native_dtype) for _ in range(3))
    expected = (q.double() @ k.double().mT).softmax(dim=-1) @ v.double()
    got = softmax_attention_native(q, k, v, 1)
    assert (got.double() - expected).norm() <= 1e-2 * expected.norm()
    q[0, 0, 3, 0] = float("nan")
    got = softmax_attention_native(q, k, v, 1)
    assert got[0, 0, 3].isnan().all()
    assert got.isnan().sum() == 32, "of the one query that is not a number, and of no other"


@needs_compiler
def test_keys_may_outnumber_queries(native_dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1, tokens, 48).to(native_dtype) for tokens in (7, 300, 300))
    q64, k64, v64 = (x.double().view(2, -1, 2, 24).transpose(1, 2) for x in (q, k, v))
    expected = ((q64 @ k64.mT).softmax(dim=-1) @ v64).transpose(1, 2).reshape(q.shape)
    got = softmax_attention_native(q, k, v, 2)
    assert (got.double() - expected).norm() <= (5e-6 if native_dtype == torch.float32 else 2e-2) * expected.norm()


@needs_compiler
def test_no_image_gives_no_image():
    assert softmax_attention_native(*torch.zeros(0, 2, 3, 96).chunk(3, dim=-1), 2).shape == (0, 2, 3, 32)


@needs_compiler
def test_threads_change_nothing(native_dtype):
    q, k, v = torch.randn(1, 40, 42, 96).to(native_dtype).chunk(3, dim=-1)
    before, outputs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            outputs.append(softmax_attention_native(q, k, v, 2))
    finally:
        torch.set_num_threads(before)
    assert all(each.equal(outputs[0]) for each in outputs)


@needs_compiler
@pytest.mark.parametrize("kernel", ["C++", "torch"])
def test_the_faster_kernel_is_taken(kernel, monkeypatch):
    def chosen(queries: torch.Size, keys: torch.Size, *, num_heads: int, dtype: torch.dtype) -> str:
        assert (queries, keys, num_heads, dtype) == ((2, 15, 32), (2, 15, 32), 2, torch.float32)
        return kernel

    monkeypatch.setattr(builders, "fastest_softmax", chosen)
    monkeypatch.setattr(builders, "fastest_product", lambda *arguments, **options: "torch")
    made = sema.create_attention("softmax", dim=32, num_heads=2)
    builder = FormBuilder(CPU, torch.float32, {made.qkv: torch.Size([2, 3, 5, 32])}, timed=True)
    assert isinstance(form_of(made, builder), SoftmaxForm) == (kernel == "C++")
    faster = {"softmax_attention: torch is faster for 15 queries and 15 keys": "torch"}
    assert builder.kernels == ({"softmax_attention": "C++"} if kernel == "C++" else faster)


@needs_compiler
def test_both_kernels_of_one_network_are_named(monkeypatch):
    choice = iter(("C++", "torch"))
    monkeypatch.setattr(builders, "fastest_softmax", lambda *arguments, **options: next(choice))
    builder = FormBuilder(CPU, torch.float32, timed=True)
    shape = torch.Size((1, 9, 32))
    assert [builder.takes_softmax_kernel(shape, shape, num_heads=2) for _ in range(2)] == [True, False]
    slower = "softmax_attention: torch is faster for 9 queries and 9 keys"
    assert builder.kernels == {"softmax_attention": "C++", slower: "torch"}


@needs_compiler
def test_both_kernels_are_timed(monkeypatch):
    monkeypatch.setattr(choices, "_results", dict)
    monkeypatch.setattr(choices, "_save", lambda results: None)
    shapes = (torch.Size([2, 9, 32]), torch.Size([2, 4, 32]))
    for times, expected in (([1.0, 2.0], "C++"), ([2.0, 1.0], "torch")):

        def timed(forms, times=times):
            results = [form() for form in forms]
            torch.testing.assert_close(results[0].squeeze(1), results[1])
            return times

        monkeypatch.setattr(choices, "shortest_times", timed)
        assert choices.fastest_softmax(*shapes, num_heads=2, dtype=torch.float32) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"q": torch.zeros(3, 3, 32)},
        {"k": torch.zeros(1, 3, 1, 32)},
        {"q": torch.zeros(2, 3, 3, 32)},
        {"q": torch.zeros(1, 3, 3, 32).double()},
        {"v": torch.zeros(1, 1, 1, 32).expand(1, 3, 3, 32)},
        {"k": torch.zeros(1, 0, 3, 32), "v": torch.zeros(1, 0, 3, 32)},
        {"heads": 0},
        {"heads": 5},
    ],
)
def test_inputs_that_it_cannot_take_are_refused(change):
    given = {name: torch.zeros(1, 3, 3, 32) for name in "qkv"} | {"heads": 2} | change
    with pytest.raises(ValueError, match="native softmax attention takes"):
        softmax_attention_native(given.pop("q"), **given)
