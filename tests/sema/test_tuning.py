"""Test what an inference form chooses by timing: the kernel of each product, and the graph."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from native_cases import needs_bfloat16, needs_compiler, needs_mkl, needs_packed_kernels
from torch import nn
from torch._dynamo.utils import counters

import sema
from sema.inference import choices, graph
from sema.inference.builder import FormBuilder
from sema.inference.choices import fastest_convolution, fastest_product
from sema.inference.fused import FusedConv2d, FusedLinear, Kernel, has_mkl, has_packed_kernels
from sema.kernels import library
from sema.layers.conv import DepthwiseConv2d

CPU = torch.device("cpu")
WEIGHT = torch.ones(4, 3)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Start with nothing timed, ``tmp_path`` as the cache, and without MKL, which some builds of torch lack."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choices, "has_mkl", lambda: False)
    cached = (library.cache_folder, choices._results, choices._file)
    for function in cached:
        function.cache_clear()
    yield tmp_path / "sema"
    for function in cached:
        function.cache_clear()


def timed(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Make each kernel but the first take these shares of the first one's time."""
    monkeypatch.setattr(choices, "shortest_times", lambda forms: [1.0, *shares[: len(forms) - 1]])


@needs_packed_kernels
@pytest.mark.parametrize(("share", "kernel"), [(0.9, "torch"), (1.0, "oneDNN"), (2.0, "oneDNN")])
def test_torchs_product_is_taken_where_it_is_faster(cache, monkeypatch, share, kernel):
    timed(monkeypatch, share)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == kernel


@needs_packed_kernels
@pytest.mark.parametrize(
    ("apart", "plain", "kernel"),
    [
        (0.8, 2.0, "oneDNN, activation apart"),
        (0.8, 0.7, "torch"),
        (0.8, 0.9, "oneDNN, activation apart"),
        (1.1, 1.2, "oneDNN"),
    ],
)
@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_the_fastest_of_three_kernels_is_taken(cache, monkeypatch, apart, plain, kernel, act):
    timed(monkeypatch, apart, plain)
    assert fastest_product(WEIGHT, None, act=act, rows=5) == kernel


@needs_packed_kernels
@needs_mkl
def test_mkls_product_is_taken_where_it_is_fastest(cache, monkeypatch):
    monkeypatch.setattr(choices, "has_mkl", has_mkl)
    timed(monkeypatch, 0.9, 0.8)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "MKL"


@needs_bfloat16
def test_bfloat16_is_multiplied_in_float32_where_that_is_faster(cache, monkeypatch):
    timed(monkeypatch, 0.8, 0.9)
    assert fastest_product(WEIGHT, None, act="none", rows=5, dtype=torch.bfloat16) == "oneDNN, float32"
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "torch", "the only other kernel in float32"


@needs_packed_kernels
def test_a_product_is_timed_with_several_copies_of_its_weights(cache, monkeypatch):
    calls = []
    monkeypatch.setattr(FusedLinear, "forward", lambda part, x: calls.append(part))

    def call(forms: Sequence[Callable[[], object]]) -> list[float]:
        for _ in range(10):
            forms[0]()
        return [1.0] * len(forms)

    monkeypatch.setattr(choices, "shortest_times", call)
    fastest_product(torch.ones(1024, 1024), None, act="none", rows=5)
    assert [calls.index(part) for part in calls] == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1], "two of them fill 8 MiB"


@needs_packed_kernels
def test_a_shape_is_timed_once_and_then_looked_up(cache, monkeypatch):
    timed(monkeypatch, 0.5)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "torch"
    timed(monkeypatch, 2.0, 2.0)
    choices._results.cache_clear()  # as in another process
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "torch"
    for other in ({"rows": 6}, {"act": "gelu"}):
        assert fastest_product(WEIGHT, None, **{"act": "none", "rows": 5} | other) == "oneDNN"
    more_threads = torch.get_num_threads() + 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: more_threads)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "oneDNN", "another number of threads is timed by itself"
    assert [len(json.loads(file.read_text())) for file in cache.iterdir()] == [4]


@needs_packed_kernels
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[1]",
        *(b'{"product 5x3x4 none float32 2 threads: oneDNN / torch": %s}' % old for old in (b"true", b'"C++"', b"[]")),
    ],
)
def test_an_unreadable_file_is_as_good_as_none(cache, monkeypatch, content):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    choices._file().write_bytes(content)
    timed(monkeypatch, 0.5)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "torch"
    assert list(json.loads(choices._file().read_text()).values()) == ["torch"]


@needs_packed_kernels
def test_a_cache_without_room_costs_only_time(cache, monkeypatch):
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    timed(monkeypatch, 0.5)
    assert fastest_product(WEIGHT, None, act="none", rows=5) == "torch"
    assert not list(cache.iterdir())


def convolution(act: str, *, maps: bool = False) -> Callable[[Kernel, Sequence[int]], FusedConv2d]:
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16).requires_grad_(False)
    return lambda kernel, size: FusedConv2d(conv, conv.weight, conv.bias, act=act, kernel=kernel, size=size, maps=maps)


@needs_compiler
@pytest.mark.parametrize(("share", "kernel"), [(0.9, "torch"), (2.0, "C++")])
@pytest.mark.parametrize("maps", [False, True])
def test_another_convolution_is_taken_where_it_is_faster(cache, monkeypatch, share, kernel, maps):
    build = convolution("gelu", maps=maps)
    timed(monkeypatch, share)
    for _ in range(2):
        given = {"name": "a convolution", "size": (100, 16, 80, 90), "dtype": torch.float32}
        assert fastest_convolution(("C++", "torch"), build, **given) == kernel
        timed(monkeypatch)  # the second time it is looked up
    (name,) = json.loads(choices._file().read_text())
    assert name.startswith("a convolution 100x16x80x90 float32 ")


@needs_compiler
def test_a_large_batch_is_timed_in_part(cache, monkeypatch):
    shapes = []

    def note(forms: Sequence[functools.partial]) -> list[float]:
        shapes.extend(form.args[0].shape for form in forms)
        return [1.0, 1.0]

    monkeypatch.setattr(choices, "shortest_times", note)
    given = {"name": "a convolution", "size": (4096, 16, 64, 64), "dtype": torch.float32}
    fastest_convolution(("C++", "torch"), convolution("none"), **given)
    assert shapes == [(256, 16, 64, 64)] * 2


def test_another_set_of_kernels_is_timed_by_itself(cache, monkeypatch):
    timed(monkeypatch, 0.5)
    given = {"name": "a convolution", "size": (1, 16, 8, 8), "dtype": torch.float32}
    assert fastest_convolution(("C++", "torch"), convolution("none"), **given) == "torch"
    timed(monkeypatch, 2.0)
    assert fastest_convolution(("C++", "torch"), convolution("none"), **given) == "torch"
    assert fastest_convolution(("torch", "C++"), convolution("none"), **given) == "torch"


@needs_compiler
@pytest.mark.parametrize("choices_in_turn", [[0], [1], [0, 1]])
def test_a_form_says_which_convolutions_it_took_and_gives_the_same(cache, monkeypatch, choices_in_turn):
    in_turn = itertools.cycle(choices_in_turn)
    monkeypatch.setattr(
        "sema.inference.builder.fastest_convolution", lambda kernels, build, **given: kernels[next(in_turn)]
    )
    net, image = model(), torch.randn(1, 3, 64, 96)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    other = "oneDNN" if has_packed_kernels(CPU, torch.float32) else "torch"
    names = [("C++", other)[choice] for choice in choices_in_turn]
    assert form.kernels["depthwise_conv"] == (names[0] if len(names) == 1 else f"C++ (4 of 8); {other} (4 of 8)")
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)


def noted_convolutions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[int]]]:
    """Choose the first kernel instead of timing; return the list to which each choice adds its name and size."""
    noted = []

    def first(
        kernels: Sequence[Kernel], build: object, *, name: str, size: Sequence[int], dtype: torch.dtype, slices: int
    ) -> Kernel:
        noted.append((name, size))
        return kernels[0]

    monkeypatch.setattr("sema.inference.builder.fastest_convolution", first)
    return noted


@needs_compiler
def test_different_convolutions_are_timed_apart(cache, monkeypatch):
    timed_convolutions = noted_convolutions(monkeypatch)
    narrow, wide = (nn.Conv2d(16, 16, size, padding="same", groups=16) for size in (3, 5))
    on_maps = DepthwiseConv2d(16)
    shapes = {narrow: torch.Size((1, 16, 8, 8)), wide: torch.Size((1, 16, 8, 8)), on_maps: torch.Size((1, 8, 8, 16))}
    builder = FormBuilder(CPU, torch.float32, shapes, timed=True)
    for conv in (narrow, wide, on_maps):
        builder.conv(conv)
    builder.conv(narrow, act="gelu")
    if builder.packed:
        for padding in (0, 1):
            full = nn.Conv2d(16, 16, 3, padding=padding)
            shapes[full] = torch.Size((1, 16, 8, 8))
            builder.conv(full, act="gelu")
    names = [name for name, _ in timed_convolutions]
    assert len(set(names)) == len(names) == (6 if builder.packed else 4)


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
    timed_convolutions = noted_convolutions(monkeypatch)
    net, image = Shared().eval(), torch.randn(2, 3, 12, 10)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    assert [size for _, size in timed_convolutions] == [[2, 16, 12, 10]]
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
def test_kernels_are_timed_for_real(cache):
    slow = functools.partial(torch.mm, torch.ones(400, 400), torch.ones(400, 400))
    long, short = choices.shortest_times([slow, lambda: torch.ones(8)])
    assert 0 < short < long


def model() -> nn.Module:
    torch.manual_seed(0)
    return sema.create_model("sema_micro", num_classes=7).eval()


@needs_packed_kernels
@pytest.mark.parametrize("fastest", ["oneDNN", "oneDNN, activation apart", "torch"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_form_says_which_products_it_took_and_gives_the_same(cache, monkeypatch, fastest, everywhere):
    def choose(weight: torch.Tensor, bias: object, **shape: object) -> str:
        return fastest if everywhere or len(weight) == 7 else "oneDNN"

    monkeypatch.setattr("sema.inference.builder.fastest_product", choose)
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, example_size=image.shape)
    whole = everywhere or fastest == "oneDNN"
    said = form.kernels["products"]
    assert said == fastest if whole else f"; {fastest} (1 of " in said
    torch.testing.assert_close(form(image), net(image), rtol=1e-4, atol=2e-5)
    monkeypatch.setattr("sema.inference.builder.fastest_product", None)
    assert sema.optimize_for_inference(net, example_size=image.shape, tune="off").kernels["products"] == "oneDNN"


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
    monkeypatch.setattr(graph, "shortest_times", lambda forms, **options: [1.0, next(in_turn)])
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
    monkeypatch.setattr(graph, "shortest_times", lambda forms, **options: [1.0, next(ratios)])
    net, image = model(), torch.randn(1, 3, 64, 64)
    form = sema.optimize_for_inference(net, dtype=torch.bfloat16, example_size=image.shape, tune="full")
    assert form.kernels["graph"].startswith("the model (the form: 1.00 ")
    output, expected = form(image), net(image)
    assert output.dtype == torch.bfloat16
    assert (output - expected).norm() <= 5e-2 * expected.norm()
    assert next(net.parameters()).dtype == torch.float32


def test_a_graph_that_computes_something_else_is_no_candidate(cache, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **options: lambda image: 2 * call(image))
    monkeypatch.setattr(graph, "shortest_times", lambda forms, **options: [1.0, 0.1])
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
