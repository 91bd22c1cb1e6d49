"""Test torch.compile: one graph without breaks, and no new graph for each size if sizes are dynamic."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config
from native_cases import needs_compiler
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import sema
from sema.inference.fused import has_packed_kernels
from sema.models.swin import Swin

CPU = torch.device("cpu")
#: The first sizes cover every kind (square or not, multiples of the window or not); the others add no new kind.
FIRST, KNOWN = ((112, 112), (128, 128), (128, 160)), ((168, 168), (160, 160), (192, 128))
OTHERS = [
    *(name for name in sema.list_attentions() if name != "sema"),
    *(f"window,shift_size=3,relative_position_bias=true,windows={form}" for form in ("masked", "padded", "scaled")),
]


@pytest.mark.parametrize("shift_size", [0, 1])
def test_windows_compile_as_one_graph_in_every_mode(shift_size: int) -> None:
    torch._dynamo.reset()
    attention = sema.create_attention("window", dim=8, num_heads=2, window_size=3, shift_size=shift_size).eval()
    x = torch.randn(1, 5, 7, 8)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        compiled = torch.compile(attention, fullgraph=True, backend="eager")
        with mode():
            torch.testing.assert_close(compiled(x), attention(x))
    torch.testing.assert_close(torch.export.export(attention, (x,)).module()(x), attention(x))


@pytest.mark.parametrize("name", ["sema", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_new_resolution_needs_no_new_graph(name: str) -> None:
    torch._dynamo.reset()
    model = sema.create_model(f"sema_micro[{name}]").eval()
    counter = CompileCounter()
    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
    with torch.inference_mode():
        for size in FIRST:
            image = torch.randn(1, 3, *size)
            torch.testing.assert_close(compiled(image), model(image))
        graphs = counter.frame_count
        for size in KNOWN:
            compiled(torch.randn(1, 3, *size))
    assert graphs <= len(FIRST)
    assert counter.frame_count == graphs


@pytest.mark.parametrize(
    "windows", ["masked", *(pytest.param(form, marks=pytest.mark.slow) for form in ("padded", "scaled"))]
)
def test_swin_compiles_as_one_graph_and_exports_with_every_form_of_windows(windows: str) -> None:
    torch._dynamo.reset()
    model = Swin(32, (2, 2), ("window", "window"), num_classes=5, windows=windows).eval()
    image = torch.randn(1, 3, 76, 52)  # maps of 19×13 and 10×7 tokens
    with torch.no_grad():
        expected = model(image)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(image), expected)
        torch.testing.assert_close(torch.export.export(model, (image,)).module()(image), expected)


def test_operators_of_forms_have_the_shapes_and_strides_that_compilers_expect() -> None:
    if not has_packed_kernels(CPU, torch.float32):
        pytest.skip("this CPU build of torch has no oneDNN")
    kernel, image = torch.randn(4, 1, 3, 5), torch.randn(2, 4, 7, 9).to(memory_format=torch.channels_last)
    geometry = ([1, 2], [2, 1], [1, 2], 4)
    weight, x = torch.randn(6, 5), torch.randn(2, 3, 5)
    linear = (torch.ops.mkldnn._reorder_linear_weight(weight, 6), None, torch.randn(2, 3, 6), "gelu", 6)
    conv = (
        torch.ops.mkldnn._reorder_convolution_weight(kernel, *geometry),
        None,
        None,
        "relu",
        [4, 3, 5],
        [1, 2, 2, 1, 1, 2, 4],
    )
    for operator, first, rest in ((torch.ops.sema.packed_linear, x, linear), (torch.ops.sema.packed_conv, image, conv)):
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
            expected = operator(
                fake.from_tensor(first),
                torch.empty(0),
                None,
                fake.from_tensor(rest[2]) if rest[2] is not None else None,
                *rest[3:],
            )
        with torch.no_grad():
            got = operator(first, *rest)
        assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)


def cut_maps(*channels: int) -> tuple[torch.Tensor, ...]:
    """Cut (2, 5, 7, C) into slices of channels."""
    return torch.randn(2, 5, 7, sum(channels)).split(channels, dim=-1)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("depthwise_conv", (*cut_maps(16), torch.randn(3, 3, 16), torch.randn(16), None, "none")),
        ("depthwise_conv", (cut_maps(16, 16)[1], torch.randn(3, 3, 16), torch.randn(16), None, "none")),
        ("attend_through_channels", (*cut_maps(32, 32, 32), 2, None)),
        ("attend_through_channels", (*cut_maps(32, 32, 32), 2, None, *cut_maps(32))),
        ("attend_softly", (*cut_maps(32, 32, 32), 2)),
        ("layer_norm", (cut_maps(16, 32)[1], torch.ones(32), torch.ones(32), 1e-6)),
        ("add_token_sum", (*cut_maps(64), torch.randn(35), torch.ones(2))),
    ],
)
def test_operators_in_cpp_have_the_shapes_and_strides_that_compilers_expect(name: str, given: tuple) -> None:
    operator = getattr(torch.ops.sema, name)
    with torch.no_grad():
        got = operator(*given)
        with FakeTensorMode() as fake:
            expected = operator(*(fake.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in given))
    assert (got.shape, got.stride(), got.dtype) == (expected.shape, expected.stride(), expected.dtype)


def check_form_compiled(name: str, tune: str = "quick", **options: object) -> None:
    torch._dynamo.reset()
    form = sema.optimize_for_inference(sema.create_model(name).eval(), example_size=(1, 3, 64, 64), tune=tune)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        compiled = torch.compile(form, fullgraph=True, dynamic=False, **options)
        torch.testing.assert_close(compiled(image), form(image), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "attention", ["sema", "window,shift_size=3,relative_position_bias=true", "xca", "vmi,expansion=2"]
)
def test_an_inference_form_is_one_graph(attention: str) -> None:
    check_form_compiled(f"sema_micro[{attention}]", backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", sema.list_models())
def test_every_inference_form_is_one_graph(name: str) -> None:
    check_form_compiled(name, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("sema_micro[sema]", "swin_tiny", "vim_tiny", "mila_tiny", "vminet_xs"),
        *("xcit_small_12_p16", "sima_cvt_13", "flatten_swin_tiny", "inline_swin_tiny"),
    ],
)
@pytest.mark.parametrize("freezing", [False, True])
def test_inductor_takes_the_operators_of_forms_whole(name: str, freezing: bool) -> None:
    with torch._inductor.config.patch(freezing=freezing):
        check_form_compiled(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_tiny", "cvt_13"])
@pytest.mark.parametrize("freezing", [False, True])
def test_inductor_takes_softmax_attention_whole_even_if_it_is_slower(name: str, freezing: bool) -> None:
    with torch._inductor.config.patch(freezing=freezing):
        check_form_compiled(name, tune="off")


def test_a_form_computes_in_its_dtype_under_autocast() -> None:
    form, image = sema.optimize_for_inference(sema.create_model("sema_micro[sema]").eval()), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = form(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(form(image), expected, rtol=0, atol=0)
