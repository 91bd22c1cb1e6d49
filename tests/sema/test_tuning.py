"""Test what an inference form chooses by timing: the kernel of each product, and the graph."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from native_cases import needs_compiler
from torch import nn
from torch._dynamo.utils import counters

import sema
from sema.inference import choices, graph
from sema.inference.choices import keep_native, keep_packed
from sema.inference.fused import FusedConv2d, FusedLinear, has_packed_kernels
from sema.kernels import library

needs_packed_kernels = pytest.mark.skipif(
    not has_packed_kernels(torch.device("cpu"), torch.float32), reason="this CPU build of torch has no oneDNN"
)
WEIGHT = torch.ones(4, 3)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Start with nothing timed, and ``tmp_path`` as the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached = (library.cache_folder, choices._results, choices._file)
    for function in cached:
        function.cache_clear()
    yield tmp_path / "sema"
    for function in cached:
        function.cache_clear()


def timed(monkeypatch: pytest.MonkeyPatch, *ratios: float) -> None:
    """Make torch's product take these shares of the packed one's time."""
    monkeypatch.setattr(choices, "ratios_of_times", lambda plain, packed: list(ratios))


@needs_packed_kernels
@pytest.mark.parametrize(
    ("ratios", "packing"), [((0.5, 0.9), False), ((0.5, 0.97), True), ((1.0, 1.0), True), ((2.0, 3.0), True)]
)
def test_torchs_product_is_taken_where_every_round_says_that_it_is_faster(cache, monkeypatch, ratios, packing):
    timed(monkeypatch, *ratios)
    assert keep_packed(WEIGHT, None, act="none", rows=5) is packing


@needs_packed_kernels
def test_a_shape_is_timed_once_and_then_looked_up(cache, monkeypatch):
    timed(monkeypatch, 0.5)
    assert not keep_packed(WEIGHT, None, act="none", rows=5)
    timed(monkeypatch, 2.0)
    choices._results.cache_clear()  # as in another process
    assert not keep_packed(WEIGHT, None, act="none", rows=5)
    for other in ({"rows": 6}, {"act": "gelu"}):
        assert keep_packed(WEIGHT, None, **{"act": "none", "rows": 5} | other)
    more_threads = torch.get_num_threads() + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: more_threads)
    assert keep_packed(WEIGHT, None, act="none", rows=5), "another number of threads is timed by itself"
    assert [len(json.loads(file.read_text())) for file in cache.iterdir()] == [4]


@needs_packed_kernels
@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"product 5x3x4 none float32 2 threads": "yes"}'])
def test_an_unreadable_file_is_as_good_as_none(cache, monkeypatch, content):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    choices._file().write_bytes(content)
    timed(monkeypatch, 0.5)
    assert not keep_packed(WEIGHT, None, act="none", rows=5)
    assert list(json.loads(choices._file().read_text()).values()) == [True]


@needs_packed_kernels
def test_a_cache_without_room_costs_only_time(cache, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    timed(monkeypatch, 0.5)
    assert not keep_packed(WEIGHT, None, act="none", rows=5)
    assert not list(cache.iterdir())


@needs_compiler
@pytest.mark.parametrize(("ratios", "native"), [((0.5, 0.9), False), ((0.5, 0.97), True), ((2.0, 3.0), True)])
@pytest.mark.parametrize("maps", [False, True])
def test_another_convolution_is_taken_where_every_round_says_that_it_is_faster(
    cache, monkeypatch, ratios, native, maps
):
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16).requires_grad_(False)
    build = functools.partial(FusedConv2d, conv, conv.weight, conv.bias, act="gelu", maps=maps)
    size = (100, 16, 80, 90)
    timed(monkeypatch, *ratios)
    for _ in range(2):
        given = {"other": lambda size: build(size=size), "size": size, "dtype": torch.float32}
        assert keep_native(build(native=True), **given) is native
        timed(monkeypatch)  # the second time it is looked up
    (name,) = json.loads(choices._file().read_text())
    assert f" {'maps' if maps else 'images'} of 100x16x80x90 3x3 gelu float32 " in name
    assert name.startswith(Path(library.load_library("depthwise_conv")._name).stem)


@needs_compiler
def test_a_large_batch_is_timed_in_part(cache, monkeypatch):
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16).requires_grad_(False)
    build = functools.partial(FusedConv2d, conv, conv.weight, conv.bias)
    shapes = []

    def note(*forms: functools.partial) -> list[float]:
        shapes.extend(form.args[0].shape for form in forms)
        return [1.0]

    monkeypatch.setattr(choices, "ratios_of_times", note)
    given = {"other": lambda size: build(size=size), "size": (4096, 16, 64, 64), "dtype": torch.float32}
    keep_native(build(native=True), **given)
    assert shapes == [(256, 16, 64, 64)] * 2


@needs_compiler
@pytest.mark.parametrize("choices_in_turn", [[True], [False], [True, False]])
def test_a_form_says_which_convolutions_it_took_and_gives_the_same(cache, monkeypatch, choices_in_turn):
    in_turn = itertools.cycle(choices_in_turn)
    monkeypatch.setattr("sema.inference.builder.keep_native", lambda *conv, **options: next(in_turn))
    net, image = model(), torch.randn(1, 3, 64, 96)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    other = "oneDNN, packed" if has_packed_kernels(torch.device("cpu"), torch.float32) else "torch"
    names = ["C++" if native else other for native in choices_in_turn]
    assert form.kernels["depthwise_conv"] == (names[0] if len(names) == 1 else f"C++ (4 of 8); {other} (4 of 8)")
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)


class Shared(nn.Module):
    """One convolution on a large map and then on a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding="same", groups=16)
        self.first = nn.Conv2d(3, 16, 3, padding="same")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image)
        return self.conv(self.conv(x)[..., ::2, ::2])


@needs_compiler
def test_a_convolution_is_timed_on_its_largest_map(cache, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        "sema.inference.builder.keep_native", lambda *conv, size, **options: shapes.append(size) or True
    )
    net, image = Shared().eval(), torch.randn(2, 3, 12, 10)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    assert shapes == [[2, 16, 12, 10]]
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)


class Single(nn.Module):
    """A convolution of one image without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images.repeat(1, 6, 1, 1)[0, :16])


def test_a_convolution_without_a_batch_is_refused_in_one_line(cache):
    with pytest.raises(sema.UnsupportedError, match="its inference form does not run"):
        sema.optimize_for_inference(Single(), example_size=(1, 3, 8, 8))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": "same", "kernel_size": 4},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("tune", ["off", "quick"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_padding_is_computed(cache, options, groups, tune):
    torch.manual_seed(0)
    convs = [nn.Conv2d(16, 16, **{"kernel_size": 3} | options, groups=groups) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(3, 16, 1), convs[0], nn.ReLU(), nn.Sequential(convs[1])).eval()
    image = torch.randn(2, 3, 14, 13)
    form = sema.optimize_for_inference(net, example_size=image.shape, tune=tune)
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

    monkeypatch.setattr("sema.inference.builder.keep_packed", choose)
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    said = {"packed": "oneDNN, packed", "torch": "oneDNN, packed (1 of ", "either": "oneDNN, packed (2 of "}[faster]
    assert said in form.kernels["products"]
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)
    monkeypatch.setattr("sema.inference.builder.keep_packed", None)
    assert sema.optimize_for_inference(net, example_size=image.shape, tune="off").kernels["products"] == said[:14]


def test_an_unknown_amount_of_tuning_is_refused():
    with pytest.raises(ValueError, match="tune must be one of off, quick, full; got 'max'"):
        sema.optimize_for_inference(model(), tune="max")


@needs_compiler
@pytest.mark.parametrize(
    ("ratios", "backend", "best"),
    [
        pytest.param((0.9, 0.95), "inductor", "the form", marks=pytest.mark.slow),
        ((0.9, 0.95), "aot_eager", "the form"),
        ((0.9, 0.8), "aot_eager", "the model"),
        ((0.99, 1.2), "aot_eager", "none"),
    ],
)
def test_the_fastest_graph_is_kept_if_it_is_faster(cache, monkeypatch, ratios, backend, best):
    networks = {}

    def compiled(call: Callable[..., object], **options: object) -> object:
        made = compile_(call, backend=backend, **options)
        networks[made] = call.__closure__[0].cell_contents
        return made

    in_turn, compile_ = iter(ratios), torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(graph, "ratios_of_times", lambda graph, form, **options: [next(in_turn)])
    net, image = model(), torch.randn(1, 3, 64, 64)
    torch.compiler.reset()
    counters.clear()
    form = sema.optimize_for_inference(net, example_size=image.shape, tune="full")
    times = "the form: {:.2f} of the time without; the model: {:.2f} of the time without".format(*ratios)
    assert form.kernels["graph"] == f"{best} ({times})"
    chosen = networks[form.form._graph] if isinstance(form.form, graph.GraphForm) else form.form
    kinds = [FusedLinear in map(type, network.modules()) for network in networks.values()]
    assert kinds == [True, False], "the form is compiled first, then the model"
    assert chosen is dict(zip(("the form", "the model"), networks.values(), strict=True)).get(best, form.form)
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
    monkeypatch.setattr(graph, "ratios_of_times", lambda graph, form, **options: [next(ratios)])
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, dtype=torch.bfloat16, example_size=image.shape, tune="full")
    assert form.kernels["graph"].startswith("the model (the form: 1.00 ")
    output, expected = form(image), net(image)
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() <= 5e-2 * expected.norm()
    assert next(net.parameters()).dtype == torch.float32


def test_a_graph_that_computes_something_else_is_no_candidate(cache, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda image: 2 * call(image))
    monkeypatch.setattr(graph, "ratios_of_times", lambda graph, form, **options: [0.1])
    form = sema.optimize_for_inference(model(), example_size=(1, 3, 64, 64), tune="full")
    assert form.kernels["graph"].startswith("none (the form: UnsupportedError: the graph differs from it by ")


def test_no_memory_for_a_graph_leaves_the_form(cache, monkeypatch):
    def fails(image: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "compile", lambda call, **options: fails)
    form = sema.optimize_for_inference(model(), example_size=(1, 3, 64, 64), tune="full")
    assert form.kernels["graph"].startswith("none (the form: RuntimeError: DefaultCPUAllocator: can't allocate memory;")


def test_a_compiler_that_fails_leaves_the_form(cache, monkeypatch):
    def fails(*args: object, **options: object) -> object:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(torch, "compile", lambda call, **options: fails)
    form = sema.optimize_for_inference(model(), example_size=(1, 3, 64, 64), tune="full")
    failed = "UnsupportedError: the graph does not run: RuntimeError: no compiler"
    assert form.kernels["graph"] == f"none (the form: {failed}; the model: {failed})"
    assert form(torch.randn(1, 3, 64, 64)).shape == (1, 7)
