"""What an inference form chooses by timing: the kernel of each product, and whether to run as a graph."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import sema
from sema.inference import choices, graph
from sema.inference.builder import FormBuilder
from sema.inference.choices import is_native_faster, is_packing_faster
from sema.inference.fused import FusedConv2d, has_packed_kernels
from sema.kernels import library

needs_packed_kernels = pytest.mark.skipif(
    not has_packed_kernels(torch.device("cpu"), torch.float32), reason="this CPU build of torch has no oneDNN"
)
WEIGHT = torch.ones(4, 3)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Nothing has been timed yet, and the cache is ``tmp_path``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = (library.cache_folder, choices._known, choices._file)
    for function in cached:
        function.cache_clear()
    yield tmp_path / "sema"
    for function in cached:
        function.cache_clear()


def timed(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> None:
    """Make torch's product take these shares of the time of the packed one."""
    monkeypatch.setattr(choices, "ratios_of_times", lambda plain, packed: list(ratios))


@needs_packed_kernels
@pytest.mark.parametrize(
    ("ratios", "packing"), [((0.5, 0.9), False), ((0.5, 0.97), True), ((1.0, 1.0), True), ((2.0, 3.0), True)]
)
def test_torchs_product_is_taken_where_every_round_says_that_it_is_faster(cache, monkeypatch, ratios, packing):
    timed(monkeypatch, *ratios)
    assert is_packing_faster(WEIGHT, None, act="none", rows=5) is packing


@needs_packed_kernels
def test_a_shape_is_timed_once_and_then_looked_up(cache, monkeypatch):
    timed(monkeypatch, 0.5)
    assert not is_packing_faster(WEIGHT, None, act="none", rows=5)
    timed(monkeypatch, 2.0)
    choices._known.cache_clear()  # as in another process
    assert not is_packing_faster(WEIGHT, None, act="none", rows=5)
    for other in ({"rows": 6}, {"act": "gelu"}):
        assert is_packing_faster(WEIGHT, None, **{"act": "none", "rows": 5} | other)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert is_packing_faster(WEIGHT, None, act="none", rows=5), "another number of threads is timed by itself"
    assert [len(json.loads(file.read_text())) for file in cache.iterdir()] == [4]


@needs_packed_kernels
@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"product 5x3x4 none float32 2 threads": "yes"}'])
def test_an_unreadable_file_is_as_good_as_none(cache, monkeypatch, content):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    choices._file().write_bytes(content)
    timed(monkeypatch, 0.5)
    assert not is_packing_faster(WEIGHT, None, act="none", rows=5)
    assert list(json.loads(choices._file().read_text()).values()) == [True]


@needs_packed_kernels
def test_a_cache_without_room_costs_only_time(cache, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    timed(monkeypatch, 0.5)
    assert not is_packing_faster(WEIGHT, None, act="none", rows=5)
    assert not list(cache.iterdir())


@needs_packed_kernels
@pytest.mark.parametrize(("ratios", "native"), [((0.5, 0.9), False), ((0.5, 0.97), True), ((2.0, 3.0), True)])
@pytest.mark.parametrize("maps", [False, True])
def test_onednns_convolution_is_taken_where_every_round_says_that_it_is_faster(
    cache, monkeypatch, ratios, native, maps
):
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16).requires_grad_(False)
    build = functools.partial(FusedConv2d, conv, conv.weight, conv.bias, act="gelu", packed=True, maps=maps)
    timed(monkeypatch, *ratios)
    assert is_native_faster(build, (8, 9), torch.float32) is native
    (name,) = json.loads(choices._file().read_text())
    shape = "1x8x9x16" if maps else "1x16x8x9"
    assert name.startswith(f"depthwise {shape} (3, 3) gelu float32 ")


@pytest.mark.parametrize(
    ("choices_in_turn", "said"),
    [([True], "C++"), ([False], "oneDNN"), ([True, False], "C++ (4 of 8); oneDNN (the others)")],
)
def test_a_form_says_which_convolutions_it_took_and_gives_the_same(cache, monkeypatch, choices_in_turn, said):
    if not FormBuilder(torch.device("cpu"), torch.float32).has_native("depthwise_conv"):
        pytest.skip("nothing can be built here")
    in_turn = itertools.cycle(choices_in_turn)
    monkeypatch.setattr("sema.inference.builder.is_native_faster", lambda *conv: next(in_turn))
    net, image = model(), torch.randn(1, 3, 64, 96)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    assert form.kernels["depthwise_conv"] == said
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)


@needs_packed_kernels
def test_both_kernels_are_timed_for_real(cache):
    ratios = choices.ratios_of_times(lambda: torch.ones(8), lambda: torch.ones(400, 400) @ torch.ones(400, 400))
    assert len(ratios) == choices._ROUNDS
    assert 0 < min(ratios) <= max(ratios) < 1


def model() -> nn.Module:
    torch.manual_seed(0)
    return sema.create_model("sema_micro", num_classes=7).eval()


@needs_packed_kernels
@pytest.mark.parametrize("faster", ["packed", "torch", "either"])
def test_a_form_says_which_products_it_took_and_gives_the_same(cache, monkeypatch, faster):
    def choose(weight: torch.Tensor, bias: object, **shape: object) -> bool:
        return faster == "packed" or (faster == "either" and len(weight) == 7)

    monkeypatch.setattr("sema.inference.builder.is_packing_faster", choose)
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    said = {"packed": "oneDNN, packed", "torch": "oneDNN, packed (1 of ", "either": "oneDNN, packed (2 of "}[faster]
    assert form.kernels["products"].startswith(said)
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)
    monkeypatch.setattr("sema.inference.builder.is_packing_faster", None)
    assert sema.optimize_for_inference(net, example_size=image.shape, tune="off").kernels["products"] == said[:14]


def test_an_unknown_amount_of_tuning_is_refused():
    with pytest.raises(ValueError, match="tune must be one of off, quick, full; got 'max'"):
        sema.optimize_for_inference(model(), tune="max")


@pytest.mark.parametrize(
    ("ratios", "backend", "said"),
    [
        ((0.9, 0.95), "inductor", "compiled (form: 0.90 of the time without; model: 0.95 of the time without)"),
        ((0.9, 0.8), "aot_eager", "compiled (form: 0.90 of the time without; model: 0.80 of the time without)"),
        ((1.1, 1.2), "aot_eager", "none (form: 1.10 of the time without; model: 1.20 of the time without)"),
    ],
)
def test_the_fastest_graph_is_kept_if_it_is_faster(cache, monkeypatch, ratios, backend, said):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    in_turn = iter(ratios)
    monkeypatch.setattr(graph, "ratios_of_times", lambda graph, form: [next(in_turn)])
    net, image = model(), torch.randn(1, 3, 64, 64)
    torch.compiler.reset()
    counters.clear()
    form = sema.optimize_for_inference(net, example_size=image.shape, tune="full")
    assert form.kernels["graph"] == said
    assert isinstance(form.form, graph.GraphForm) is said.startswith("compiled")
    expected = net(image)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(form(image.clone()), expected, rtol=1e-4, atol=2e-5)
    other = torch.randn(2, 3, 72, 104)
    torch.testing.assert_close(form(other), net(other), rtol=1e-4, atol=2e-5)
    assert counters["stats"]["unique_graphs"] == 2, "neither a mode of autograd nor another size is compiled"


def test_the_graph_of_the_model_computes_in_the_dtype_of_the_form(cache, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    ratios = iter((1.0, 0.5))
    monkeypatch.setattr(graph, "ratios_of_times", lambda graph, form: [next(ratios)])
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, dtype=torch.bfloat16, example_size=image.shape, tune="full")
    got, expected = form(image), net(image)
    assert got.dtype == torch.bfloat16
    assert (got - expected).norm() <= 5e-2 * expected.norm()
    assert next(net.parameters()).dtype == torch.float32


def test_a_compiler_that_fails_leaves_the_form(cache, monkeypatch):
    def fails(*args: object, **options: object) -> object:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", lambda call, **options: fails)
    form = sema.optimize_for_inference(model(), example_size=(1, 3, 64, 64), tune="full")
    assert form.kernels["graph"] == "none (form: RuntimeError: no compiler; model: RuntimeError: no compiler)"
    assert form(torch.randn(1, 3, 64, 64)).shape == (1, 7)
