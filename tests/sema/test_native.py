"""Test the C++ kernels against naive ones in float64, and the message if they cannot be built."""

from __future__ import annotations

import copy
import os
import stat
import subprocess
from pathlib import Path

import pytest
import torch
from native_cases import SCANS, convolved, needs_compiler, run_depthwise, scanned, tensors
from torch import Tensor

import sema
from sema.attention.window import WindowAttention
from sema.inference import choices
from sema.inference.attentions import WindowForm
from sema.inference.builder import FormBuilder
from sema.kernels import activation, library
from sema.kernels.activation import ACTIVATIONS, Gate
from sema.kernels.channel_attention import attend_through_channels_native
from sema.kernels.focused_features import focus_native
from sema.kernels.layer_norm import layer_norm_native
from sema.kernels.library import NativeUnavailableError, load_library
from sema.kernels.linear_attention import attend_linearly_native
from sema.kernels.scan_native import selective_scan_native
from sema.kernels.softmax_attention import softmax_attention_native
from sema.kernels.token_sum import add_token_sum_native
from sema.kernels.window_attention import attend_in_windows_native
from sema.layers.selective_scan import selective_scan_reference
from sema.layers.state_space import step_sizes


def attend_naively(
    qk: Tensor, v: Tensor, onto: Tensor, heads: int, size: int, plus: Tensor | None, gate: Gate | None
) -> Tensor:
    """Compute the same in float64, window by window and head by head."""
    qk, v, out = qk.double(), v.double(), onto.double().clone()
    images, height, width, channels = v.shape
    depth = channels // heads
    for image in range(images):
        for top in range(0, height, size):
            for left in range(0, width, size):
                window = (image, slice(top, top + size), slice(left, left + size))
                for head in range(heads):
                    of_head = slice(head * depth, (head + 1) * depth)
                    q, k = (part[window][..., of_head].flatten(0, 1) for part in qk.chunk(2, dim=-1))
                    values = v[window][..., of_head]
                    mixed = (q @ k.T).softmax(dim=-1) @ values.flatten(0, 1)
                    out[window][..., of_head] += mixed.view(values.shape)
    out = out if plus is None else out + plus.double()
    return out if gate is None else out * ACTIVATIONS[gate.act](gate.maps.double())


#: Images, height, width, heads, depth, window. They cover whole windows, rests on both sides, one window, windows of
#: one token, depths below, above and not a multiple of a vector register, more tokens than channels, and fewer.
SHAPES = [
    (2, 14, 14, 2, 32, 7),
    (1, 15, 9, 3, 24, 7),
    (2, 5, 3, 1, 8, 3),
    (1, 3, 4, 2, 16, 7),
    (3, 7, 7, 4, 16, 1),
    (1, 30, 29, 2, 5, 14),
    (1, 8, 20, 2, 40, 7),
    (1, 16, 16, 1, 64, 8),
]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("act", ["", "none", "silu"])
def test_the_kernel_is_the_definition(shape, plus, act, native_dtype):
    *sizes, size = shape
    cast = {name: x.to(native_dtype) for name, x in tensors(*sizes).items()}
    optional = {"plus": cast["plus"] if plus else None, "gate": Gate(cast["gate"], act) if act else None}
    expected = attend_naively(cast["qk"], cast["v"], cast["onto"], shape[3], size, **optional)
    out = cast["onto"].clone()
    attend_in_windows_native(cast["qk"], cast["v"], onto=out, num_heads=shape[3], window_size=size, **optional)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 6e-3}[native_dtype]
    assert (out.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
def test_channels_of_larger_maps_are_read_and_written_in_place():
    given = tensors(2, 15, 9, 2, 24)
    names = ("onto", "qk", "v", "gate")
    larger = torch.cat([given[name] for name in names], dim=-1)
    parts = dict(zip(names, larger.split([given[name].shape[-1] for name in names], dim=-1), strict=True))
    for maps in (given, parts):
        attend_in_windows_native(
            maps["qk"], maps["v"], onto=maps["onto"], num_heads=2, window_size=4, gate=Gate(maps["gate"])
        )
    assert larger.equal(torch.cat([given[name] for name in names], dim=-1))


@needs_compiler
def test_rows_of_windows_one_image_at_a_time_are_the_whole():
    given = tensors(2, 15, 9, 2, 24)
    whole, pieces = given["onto"].clone(), given["onto"].clone()
    kwargs = {"num_heads": 2, "window_size": 4}
    attend_in_windows_native(
        given["qk"], given["v"], onto=whole, plus=given["plus"], gate=Gate(given["gate"]), **kwargs
    )
    for image in range(2):
        for top in range(0, 15, 8):
            piece = (slice(image, image + 1), slice(top, top + 8))
            attend_in_windows_native(
                given["qk"][piece].contiguous(), given["v"][piece], onto=pieces[piece],
                plus=given["plus"][piece[0]], gate=Gate(given["gate"][piece]), **kwargs,
            )  # fmt: skip
    torch.testing.assert_close(pieces, whole, rtol=0, atol=0)


@needs_compiler
def test_scores_that_torch_can_take_can_be_taken():
    given = tensors(1, 7, 7, 1, 16)
    given["qk"] *= 30  # scores in the thousands: exp must see only differences
    out = torch.zeros_like(given["v"])
    attend_in_windows_native(given["qk"], given["v"], onto=out, num_heads=1, window_size=7)
    expected = attend_naively(given["qk"], given["v"], torch.zeros_like(out), 1, 7, None, None)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-3)
    given["qk"][0, 2, 3, 0] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.zeros_like(out, dtype=dtype)
        attend_in_windows_native(given["qk"].to(dtype), given["v"].to(dtype), onto=out, num_heads=1, window_size=7)
        assert out[0, 2, 3].isnan().all()
        assert out.isnan().sum() == 16, "of the one query that is not a number, and of no other"


@needs_compiler
@pytest.mark.parametrize("grid", [(14, 14), (15, 9), (8, 20), (7, 7), (5, 3)])
@pytest.mark.parametrize("size", [7, 9])
@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("windows", ["masked", "padded"])
def test_bias_and_shift_are_those_of_swin(grid, size, shift, windows, native_dtype):
    torch.manual_seed(0)
    options = {"window_size": size, "shift_size": shift, "relative_position_bias": True, "windows": windows}
    attention = WindowAttention(48, 3, **options).eval()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(2, *grid, 48)
    form = WindowForm(copy.deepcopy(attention), FormBuilder(torch.device("cpu"), native_dtype))
    with torch.inference_mode():
        expected = attention.double().reference(x.double())
        got = form(x.to(native_dtype))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[native_dtype]
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


@needs_compiler
def test_threads_change_nothing():
    given = tensors(1, 28, 28, 2, 32)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = given["onto"].clone()
            attend_in_windows_native(given["qk"], given["v"], onto=out, num_heads=2, window_size=7)
            outputs.append(out)
    finally:
        torch.set_num_threads(before)
    assert outputs[0].equal(outputs[1])
    assert outputs[0].equal(outputs[2])


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given | {"v": given["v"].double()},
        lambda given: given | {"qk": given["qk"][..., :32]},
        lambda given: given | {"onto": given["onto"].transpose(1, 2)},
        lambda given: given | {"gate": given["gate"].to("meta")},
        lambda given: {name: x.double() for name, x in given.items()},
        lambda given: given | {"window_size": 0},
        lambda given: given | {"num_heads": 0},
        lambda given: given | {"onto": torch.zeros(1, 1, 1, 32).expand(1, 6, 8, 32)},
        lambda given: given | {"act": "tanh"},
    ],
)
def test_what_the_kernel_cannot_take_is_refused(change):
    given = {"window_size": 7, "num_heads": 2, "act": "none"} | change(tensors(1, 6, 8, 2, 16))
    given["gate"] = Gate(given["gate"], given.pop("act"))
    with pytest.raises(ValueError, match="native window attention takes"):
        attend_in_windows_native(given.pop("qk"), given.pop("v"), **given)


@needs_compiler
def test_narrow_registers_compute_alike(monkeypatch, tmp_path):
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx512f" not in cpu.read_text(encoding="utf-8"):
        pytest.skip("all registers are narrow here")
    conv, x, add = convolved((2, 9, 21, 48), 5)
    given = tensors(1, 15, 9, 2, 24)
    given["qk"] *= 20  # some weights of the softmax are 0
    sequences, qkv = scanned(SCANS[1]), torch.randn(1, 15, 9, 198)

    monkeypatch.setattr("sema.kernels.pairs.pairs_are_faster", lambda: False)

    def results() -> list[Tensor]:
        maps = []
        for dtype in (torch.float32, torch.bfloat16):
            qk, v, onto = (given[name].to(dtype, copy=True) for name in ("qk", "v", "onto"))
            attend_in_windows_native(qk, v, onto=onto, num_heads=2, window_size=4)
            maps.append(onto)
        maps += [run_depthwise(conv, x.to(dtype), add.to(dtype), "gelu") for dtype in (torch.float32, torch.bfloat16)]
        maps += [attend_through_channels_native(*qkv.chunk(3, dim=-1), 2, each) for each in (None, torch.ones(2))]
        maps.append(attend_through_channels_native(*qkv.chunk(3, dim=-1), 2, add=qkv[..., :66]))
        maps.append(softmax_attention_native(*qkv.chunk(3, dim=-1), 3))
        maps.append(softmax_attention_native(*qkv.bfloat16().chunk(3, dim=-1), 3))
        maps.append(layer_norm_native(qkv[..., :192], torch.ones(192), torch.ones(192), 1e-6))
        rotated = torch.zeros(1, 15, 9, 64)
        attend_linearly_native(qkv[..., :128], qkv[..., 128:192], onto=rotated, num_heads=2, features="rotated")
        focused = qkv[..., :128].clone()
        focus_native(focused, qkv[..., :64].contiguous(), torch.ones(64), 3)
        summed = add_token_sum_native(qkv[..., :192].contiguous(), torch.ones(135), torch.ones(2))
        return [*maps, rotated, focused, summed, selective_scan_native(*sequences)]

    wide = results()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        patch.setattr(library, "_FLAGS", (*library._FLAGS, "-mno-avx512f"))
        library.cache_folder.cache_clear()
        names = (
            *("depthwise_conv", "window_attention", "channel_attention", "linear_attention", "focused_features"),
            *("softmax_attention", "layer_norm", "token_sum", "selective_scan"),
        )
        narrow = {name: load_library.__wrapped__(name) for name in names}
    library.cache_folder.cache_clear()
    for name in names:
        module = "scan_native" if name == "selective_scan" else name
        monkeypatch.setattr(f"sema.kernels.{module}.load_library", narrow.__getitem__)
    for got, expected in zip(results(), wide, strict=True):
        tolerance = 1e-6 if got.dtype == torch.float32 else 4e-3
        assert (got.double() - expected.double()).norm() <= tolerance * expected.double().norm()


# The selective scan


@needs_compiler
@pytest.mark.parametrize("shape", SCANS, ids=lambda shape: "x".join(map(str, shape)))
def test_the_scan_is_its_definition_with_gradients(shape):
    given = scanned(shape, requires_grad=True)
    wide = [x.detach().double().requires_grad_() for x in given]
    got, expected = selective_scan_native(*given), selective_scan_reference(*wide)
    assert (got.double() - expected).norm() <= 1e-6 * expected.norm()
    gradients = (torch.autograd.grad(y.square().sum(), x) for y, x in ((got, given), (expected, wide)))
    for one, other in zip(*gradients, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


@needs_compiler
def test_the_scan_takes_views_as_they_are():
    u, delta, a, b, c = scanned((2, 2, 5, 7, 20, 2))
    expected = selective_scan_reference(u[:1].expand_as(u), delta, a, b, c)
    got = selective_scan_native(u[:1].expand_as(u), delta, a, b, c)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (u[:1].expand_as(u), delta, b, c)]
    got = selective_scan_native(turned[0], turned[1], a, turned[2], turned[3])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", SCANS, ids=lambda shape: "x".join(map(str, shape)))
def test_step_sizes_are_computed_in_the_scan(shape, dtype):
    u, steps, a, b, c = scanned(shape)
    steps, bias = (8 * steps - 20).to(dtype), torch.linspace(-3, 3, shape[0] * shape[4]).view(shape[0], shape[4])
    u, a = (x.double() if dtype == torch.float64 else x for x in (u, a))
    wide = [x.double() for x in (u, step_sizes(steps.double(), bias.double()), a, b, c)]
    got, expected = selective_scan_native(u, steps, a, b, c, bias=bias), selective_scan_reference(*wide)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got.double() - expected).norm() <= 1e-6 * expected.norm()


@needs_compiler
def test_step_sizes_of_any_size_are_exact():
    """With one token, no decay and weights of 1, the output is the step size."""
    steps = torch.cat((torch.linspace(-85, 85, 3001), torch.tensor([0.0, 1e-30, -1e-30, 1e4, float("nan")])))
    one = torch.ones(1, 1, 1, 1, 1)
    u, a, bias = one.expand(1, 1, 1, 1, len(steps)), torch.zeros(1, len(steps), 1), torch.zeros(1, len(steps))
    got = selective_scan_native(u, steps.view(u.shape), a, one, one, bias=bias).flatten().double()
    expected = torch.logaddexp(steps.double(), torch.zeros(()).double())
    torch.testing.assert_close(got, expected, rtol=4e-7, atol=0, equal_nan=True)


@needs_compiler
def test_step_sizes_have_gradients():
    given = [*scanned((2, 1, 3, 4, 20, 2)), torch.randn(2, 20)]
    wide = [x.double().requires_grad_() for x in given]
    given = [x.requires_grad_() for x in given]
    u, steps, a, b, c, bias = wide
    expected = selective_scan_reference(u, step_sizes(steps, bias), a, b, c)
    got = selective_scan_native(*given[:5], bias=given[5])
    gradients = (torch.autograd.grad(y.square().sum(), x) for y, x in ((got, given), (expected, wide)))
    for one, other in zip(*gradients, strict=True):
        assert (one.double() - other).norm() <= 1e-5 * other.norm()


@needs_compiler
@pytest.mark.parametrize("rate", [0.0, -1e-8, -50.0, -1e4])
def test_decays_of_any_size_are_exact(rate):
    given = scanned((1, 1, 1, 40, 16, 1))
    given[2] = torch.full_like(given[2], rate)
    expected = selective_scan_reference(*(x.double() for x in given))
    torch.testing.assert_close(selective_scan_native(*given).double(), expected, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize(
    "name", ["vmamba_tiny_s1l8[scan=native]", "vim_tiny[scan=native]", "sema_micro[vim,scan=native]"]
)
def test_a_model_takes_the_scan_by_name(name):
    torch.manual_seed(0)
    model = sema.create_model(name).eval()
    plain = sema.create_model(name.replace("scan=native", "scan=torch")).eval()
    plain.load_state_dict(model.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-5)


@needs_compiler
def test_what_the_scan_cannot_take_is_refused():
    given = scanned((1, 1, 1, 4, 2, 65))
    with pytest.raises(ValueError, match="at most 64 states of a channel; got 65"):
        selective_scan_native(*given)
    u, delta, a, b, c = scanned((1, 1, 1, 4, 2, 3))
    with pytest.raises(ValueError, match="b must be"):
        selective_scan_native(u, delta, a, b[..., :2], c)
    with pytest.raises(ValueError, match=r"bias must be \(1, 2\); got \(2,\)"):
        selective_scan_native(u, delta, a, b, c, bias=torch.zeros(2))
    wide = [x.double() for x in scanned((1, 1, 1, 4, 2, 3))]
    assert selective_scan_native(*wide).dtype == torch.float64, "by PyTorch's operators"
    assert selective_scan_native(*(x.to("meta") for x in scanned((1, 1, 1, 4, 2, 3)))).shape == (1, 1, 1, 4, 2)


@needs_compiler
def test_a_compiler_sees_one_operator():
    given = scanned((2, 1, 1, 50, 20, 2))
    compiled = torch.compile(selective_scan_native, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), selective_scan_native(*given))
    bias = torch.randn(2, 20)
    torch.testing.assert_close(compiled(*given, bias=bias), selective_scan_native(*given, bias=bias))


# Building


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Start with nothing built, and ``tmp_path`` as the cache."""
    cached = (load_library, library.cache_folder, activation._library, choices._results, choices._file)
    for function in cached:
        function.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    for function in cached:
        function.cache_clear()


@needs_compiler
def test_a_kernel_is_built_once(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    load_library("window_attention")
    (built,) = (fresh / "sema").iterdir()
    assert stat.S_IMODE((fresh / "sema").stat().st_mode) == 0o700
    load_library.cache_clear()
    monkeypatch.setattr(library, "_build", None)
    load_library("window_attention")
    assert built.exists()


@needs_compiler
def test_a_cache_that_others_can_write_to_is_not_used(fresh: Path):
    (fresh / "sema").mkdir()
    (fresh / "sema").chmod(0o777)
    load_library("window_attention")
    assert not list((fresh / "sema").iterdir())


def test_without_a_compiler_the_form_says_so_and_is_right(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    torch.manual_seed(0)
    model, image = sema.create_model("sema_micro[sema]").eval(), torch.randn(1, 3, 64, 96)
    form = sema.optimize_for_inference(model)
    assert form.kernels["window_attention"].startswith("torch (no C++ compiler is installed")
    with torch.inference_mode():
        torch.testing.assert_close(form(image), model(image), rtol=1e-4, atol=2e-5)


def test_a_compiler_that_is_not_found_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no such compiler")
    with pytest.raises(NativeUnavailableError, match="'no such compiler' that CXX names is not found; unset CXX"):
        load_library("window_attention")


@needs_compiler
def test_a_compiler_may_have_options(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "c++ -w")
    load_library("window_attention")


def test_a_compiler_that_fails_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = fresh / "broken"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(NativeUnavailableError, match=r"cannot build window_attention.cpp: x.cpp:1: error: no such"):
        load_library("window_attention")


@needs_compiler
@pytest.mark.parametrize(
    ("model", "kernel"), [("sema_micro[sema]", "window_attention"), ("sema_micro[vmamba]", "selective_scan")]
)
def test_the_form_says_what_computes_it(model, kernel):
    assert sema.optimize_for_inference(sema.create_model(model).eval()).kernels[kernel] == "C++"


def test_a_scan_with_more_states_than_the_kernel_holds_has_a_form():
    form = sema.optimize_for_inference(sema.create_model("sema_micro[vim,state_dim=65]").eval())
    assert form.kernels["selective_scan"] == "torch"


def test_a_scan_that_cannot_be_built_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ImportError, match=r"scan='native' cannot be built: no C\+\+ compiler .* use scan='torch'"):
        sema.create_model("vim_tiny[scan=native]")


@needs_compiler
def test_a_built_kernel_brings_no_openmp_of_its_own():
    """Two OpenMP runtimes in a process would fight for the CPUs."""
    path = load_library("window_attention")._name
    needed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False, env=os.environ).stdout
    assert "omp" not in needed
