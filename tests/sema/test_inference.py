"""Test inference forms: the same function as the model, whatever is folded, fused and packed."""

from __future__ import annotations

import gc

import pytest
import torch
from native_cases import needs_mkl
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sema
from sema.inference.builder import FormBuilder
from sema.inference.fused import FusedConv2d, FusedLinear, has_packed_kernels
from sema.layers.table_cache import TableCache

CPU = torch.device("cpu")
#: One of each architecture; the others differ only in size.
FAMILIES = (
    *("sema_tiny", "mila_tiny", "deit_tiny", "sima_deit_tiny", "vminet_ti", "vminet2_ti", "sima_nano_12_p16"),
    *("xcit_small_12_p16", "cvt_13", "sima_cvt_13", "swin_tiny", "flatten_swin_tiny", "inline_swin_tiny"),
    *("vmamba_tiny_s1l8", "vim_tiny"),
    *("swin_tiny[windows=padded]", "swin_tiny[windows=scaled]"),
)
IN_THE_BACKBONE = [f"sema_micro[{name}]" for name in sema.list_attentions()]
OPTIONS = (
    "pooling=max",
    "pooling=none",
    "lepe=false",
    "window_size=3",
    "scale=1.0",
    "qkv_bias=false",
    "head=attention",
)


def disturbed(name: str, **options: object) -> nn.Module:
    """Build a model in which no bias is zero and no batch norm is the identity."""
    torch.manual_seed(0)
    model = sema.create_model(name, num_classes=7, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        assert parameter.requires_grad, key
    return model


@pytest.mark.parametrize("name", [*FAMILIES, *IN_THE_BACKBONE, *(f"sema_micro[sema,{option}]" for option in OPTIONS)])
def test_the_form_is_the_model_at_any_size_and_batch(name):
    model = disturbed(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = sema.optimize_for_inference(model, example_size=(1, 3, 64, 64))
    for size in ((2, 3, 64, 64), (1, 3, 72, 104)):
        image = torch.randn(size)
        with torch.inference_mode():
            torch.testing.assert_close(form(image), model(image), rtol=1e-4, atol=2e-5)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sema.list_models() if name not in FAMILIES])
def test_the_form_of_every_other_model(name):
    model = disturbed(name)
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        torch.testing.assert_close(sema.optimize_for_inference(model)(image), model(image), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("pieces", [1 << 10, 1 << 14, 1 << 30])
def test_pieces_change_nothing(monkeypatch, pieces):
    model = disturbed("sema_micro[sema]")
    image = torch.randn(3, 3, 84, 120)
    with torch.inference_mode():
        expected = model(image)
        monkeypatch.setattr("sema.inference.attentions._PIECE_BYTES", pieces)
        monkeypatch.setattr("sema.inference.blocks._PIECE_BYTES", pieces)
        torch.testing.assert_close(sema.optimize_for_inference(model)(image), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["sema_tiny", "deit_tiny", "mila_tiny"])
def test_features_are_those_of_the_model(name):
    model = disturbed(name)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for got, expected in zip(
            sema.optimize_for_inference(model).forward_features(image), model.forward_features(image), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_form_computes_in_the_dtype_that_is_asked_for(dtype):
    model = disturbed("sema_micro[sema]")
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        exact = model.double()(image.double())
        got = sema.optimize_for_inference(model.float(), dtype=dtype)(image)
    assert got.dtype == dtype
    error = (got.double() - exact).norm() / exact.norm()
    assert error < (1e-12 if dtype == torch.float64 else 2e-2)


def test_a_model_of_torchs_own_layers_has_a_form():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 1), nn.GELU("tanh"), nn.Flatten(),
        nn.Linear(8 * 16, 5),
    ).eval()  # fmt: skip
    model[1].running_mean.normal_()
    image = torch.randn(2, 3, 8, 8)
    form = sema.optimize_for_inference(model, example_size=(1, 3, 8, 8))
    with torch.inference_mode():
        torch.testing.assert_close(form(image), model(image), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())


def test_an_activation_after_a_sequence_goes_into_its_last_convolution():
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)) for _ in range(2))
    model, image = nn.Sequential(first, nn.GELU(), second).eval(), torch.randn(2, 3, 8, 8)
    form = sema.optimize_for_inference(model, example_size=image.shape)
    with torch.inference_mode():
        torch.testing.assert_close(form(image), model(image), rtol=1e-4, atol=1e-5)
    assert [part.act for part in form.modules() if isinstance(part, FusedConv2d)] == ["gelu", "none"]


@pytest.mark.parametrize("name", ["sema_micro[sema]", "sema_micro[window]", "vmamba_tiny_s1l8"])
def test_a_form_does_not_keep_the_weights_that_it_was_made_of(name):
    model = sema.create_model(name).eval()
    form = sema.optimize_for_inference(model)
    linears = [module for module in form.modules() if isinstance(module, nn.Linear)]
    assert not linears
    gc.collect()
    before = {id(x) for x in gc.get_objects() if type(x) is nn.Linear}
    other = sema.optimize_for_inference(model)
    gc.collect()
    left = [x for x in gc.get_objects() if type(x) is nn.Linear and id(x) not in before]
    assert not left
    assert other is not form


def test_a_norm_without_running_statistics_is_not_folded():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()).eval()
    image = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(sema.optimize_for_inference(model)(image), model(image), rtol=1e-4, atol=1e-5)


class Residual(nn.Sequential):
    """A sequence that does more than run its layers in order."""

    def forward(self, x):
        return (x + super().forward(x)).mean((2, 3))


def test_a_sequence_with_a_mind_of_its_own_keeps_it():
    torch.manual_seed(0)
    model, image = Residual(nn.Conv2d(3, 3, 1), nn.ReLU()), torch.randn(1, 3, 4, 4)
    form = sema.optimize_for_inference(model, example_size=(1, 3, 4, 4))
    with torch.inference_mode():
        torch.testing.assert_close(form(image), model(image))


class Peeking(nn.Module):
    """Reads the weight of its layer directly."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return torch.nn.functional.linear(x.mean((2, 3)), self.inner.weight)


class Moody(nn.Module):
    """Returns something else once its parts are replaced."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x.mean((2, 3))) * (1.0 if isinstance(self.inner, nn.Linear) else 1.1)


@pytest.mark.parametrize(
    ("model", "message"),
    [(Peeking(), "its inference form does not run: AttributeError"), (Moody(), "differs from it by 1.0e-01")],
)
def test_a_form_that_is_not_the_model_is_never_given(model, message):
    with pytest.raises(sema.UnsupportedError, match=message):
        sema.optimize_for_inference(model, example_size=(2, 3, 8, 8))


def test_a_form_says_how_large_its_weights_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 16, 5))
    form = sema.optimize_for_inference(model, dtype=torch.bfloat16, example_size=(1, 3, 4, 4), tune="off")
    itemsize = 2 if has_packed_kernels(CPU, torch.bfloat16) else 4
    assert form.weights_bytes == itemsize * sum(parameter.numel() for parameter in model.parameters())


def test_images_of_any_dtype_and_memory_format_are_cast():
    form = sema.optimize_for_inference(disturbed("sema_micro[sema]"), example_size=(1, 3, 64, 64))
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = form(image)
        for other in (image.double(), image.to(memory_format=torch.channels_last), image.mT.contiguous().mT):
            torch.testing.assert_close(form(other), expected, rtol=0, atol=0)


@pytest.mark.parametrize("scanned", ["vmamba", "vim"])
def test_a_scan_attention_with_another_scan_shares_its_parameters(scanned):
    attention = sema.create_attention(scanned, dim=16, num_heads=1).eval()
    alone, x = attention.with_scan("torch"), torch.randn(1, 5, 4, 16)
    parameters = dict(attention.named_parameters())
    shared = {key: p.data_ptr() for key, p in alone.named_parameters()}
    assert shared == {key: p.data_ptr() for key, p in parameters.items()}
    torch.testing.assert_close(alone(x), attention(x), rtol=0, atol=0)


@pytest.mark.parametrize("act", ["none", "relu", "relu6", "gelu", "silu"])
@pytest.mark.parametrize("kernel", ["torch", "oneDNN", "oneDNN, activation apart", "oneDNN, float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_parts_are_their_definition(act, kernel, dtype):
    """Their weights are in float32, whatever the dtype of the input."""
    if kernel != "torch" and not has_packed_kernels(CPU, torch.float32):
        pytest.skip("this CPU build of torch has no oneDNN")
    torch.manual_seed(0)
    plain = {"none": nn.Identity(), "relu": nn.ReLU(), "relu6": nn.ReLU6(), "gelu": nn.GELU(), "silu": nn.SiLU()}[act]
    linear, point = nn.Linear(12, 20), nn.Conv2d(12, 20, 1)
    conv = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    x, add = torch.randn(2, 5, 12), torch.randn(2, 5, 20)
    image, more = (torch.randn(2, c, 6, 7).to(memory_format=torch.channels_last) for c in (12, 20))
    options = {"act": act, "kernel": kernel}
    with torch.inference_mode():
        for part, fused, given, residual in (
            (linear, FusedLinear(linear.weight, linear.bias, **options), x, add),
            (conv, FusedConv2d(conv, conv.weight, conv.bias, **options, size=image.shape), image, image.clone()),
            (point, FusedConv2d(point, point.weight, point.bias, **options), image, more),
        ):
            given, residual = given.to(dtype), residual.to(dtype)
            expected = plain(part(given.float()))
            torch.testing.assert_close(fused(given), expected.to(dtype))
            torch.testing.assert_close(fused(given, add=residual), (expected + residual.float()).to(dtype))


@needs_mkl
@pytest.mark.parametrize("act", ["none", "gelu"])
def test_weights_packed_for_mkl_serve_any_number_of_rows(act):
    torch.manual_seed(0)
    weight, bias, x, add = torch.randn(20, 12), torch.randn(20), torch.randn(2, 5, 12), torch.randn(2, 5, 20)
    fused = FusedLinear(weight, bias, act=act, kernel="MKL", rows=10)
    plain = FusedLinear(weight, bias, act=act)
    with torch.inference_mode():
        for rows in (2, 1):
            torch.testing.assert_close(fused(x[:rows], add[:rows]), plain(x[:rows], add[:rows]))


@needs_mkl
def test_a_second_set_of_weights_is_counted(monkeypatch):
    monkeypatch.setattr("sema.inference.builder.fastest_product", lambda *args, **options: "MKL")
    model = nn.Linear(12, 20)
    form = sema.optimize_for_inference(nn.Sequential(nn.Flatten(), model), example_size=(1, 3, 2, 2))
    assert form.weights_bytes == 4 * (12 * 20 + 20)
    assert form.spare_bytes == 4 * 12 * 20
    again = sema.optimize_for_inference(nn.Sequential(nn.Flatten(), model), example_size=(1, 3, 2, 2), tune="off")
    assert again.spare_bytes == 0


def test_a_part_that_is_called_by_keyword_is_refused():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.conv(input=image)

    with pytest.raises(sema.UnsupportedError, match="its inference form does not run: TypeError"):
        sema.optimize_for_inference(Keyword(), example_size=(1, 3, 8, 8))


@pytest.mark.parametrize("maps", [False, True])
def test_a_depthwise_convolution_in_cpp_takes_maps_and_images(maps):
    if not FormBuilder(CPU, torch.float32).has_native("depthwise_conv"):
        pytest.skip("nothing can be built here")
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
    fused = FusedConv2d(conv, conv.weight.detach(), None, act="silu", kernel="C++", maps=maps)
    image, add = torch.randn(2, 2, 16, 6, 7)
    with torch.inference_mode():
        for given, more in ((image, 0), (image, add)):
            on_maps = [x.permute(0, 2, 3, 1) if maps else x for x in (given, more) if isinstance(x, torch.Tensor)]
            got = fused(*on_maps)
            expected = nn.functional.silu(conv(given)) + more
            torch.testing.assert_close(got.permute(0, 3, 1, 2) if maps else got, expected)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding"),
    [(48, 3, 2, 1), (16, 5, 3, 2), (50, (3, 5), (2, 1), (1, 2)), (400, 1, 2, 0), (8, 1, 1, 1), (4, 3, 2, 1)],
)
@pytest.mark.parametrize("maps", [False, True])
def test_a_convolution_packed_for_one_size_computes_every_size(channels, kernel, stride, padding, maps):
    if not has_packed_kernels(CPU, torch.float32):
        pytest.skip("this CPU build of torch has no oneDNN")
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, kernel, stride, padding)
    with torch.inference_mode():
        size = (2, channels, 13, 10)
        fused = FusedConv2d(conv, conv.weight, conv.bias, act="relu", kernel="oneDNN", size=size, maps=maps)
        for shape in (size, (2, channels, 12, 20), (1, channels, 13, 10)):
            image = torch.randn(shape).to(memory_format=torch.channels_last)
            got = fused(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if maps else fused(image)
            torch.testing.assert_close(got, conv(image).relu(), rtol=1e-4, atol=1e-5)


def test_constants_are_folded_where_they_belong():
    torch.manual_seed(0)
    linear, norm, scale = nn.Linear(6, 4), nn.BatchNorm2d(4).eval(), torch.rand(4) + 0.5
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    builder = FormBuilder(CPU, torch.float32)
    x = torch.randn(3, 6)
    with torch.inference_mode():
        torch.testing.assert_close(builder.linear(linear, scale=scale, input_scale=0.5)(x), linear(0.5 * x) * scale)
        torch.testing.assert_close(builder.linear(linear, outputs=slice(1, 3))(x), linear(x)[:, 1:3])
        folded = builder.linear(linear, norm=norm, scale=scale)(x)
        torch.testing.assert_close(folded, norm((linear(x) * scale)[..., None, None])[..., 0, 0])


class RoundedProducts(TorchDispatchMode):
    """Rounds the inputs of products and convolutions to the 10 bits of mantissa that TF32 keeps."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket.__name__ in ("mm", "addmm", "bmm", "convolution", "linear", "conv2d", "matmul"):
            args = tuple(self.rounded(x) if isinstance(x, torch.Tensor) and x.ndim > 1 else x for x in args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(x):
        bits = x.view(torch.int32)
        return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize("allowed", [False, True])
def test_on_cuda_a_form_may_differ_by_what_tf32_rounds_where_tf32_is_allowed(monkeypatch, allowed):
    """The CPU rounds like TF32, runs the model as CUDA does then, and builds the form of CUDA."""
    monkeypatch.setattr(TableCache, "may_cache", lambda *sources, **options: False)
    model = sema.create_model("sema_small").eval()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    monkeypatch.setattr(
        "sema.inference.optimize.FormBuilder",
        lambda device, *rest, **options: FormBuilder(torch.device("cuda"), *rest, **options),
    )
    with RoundedProducts():
        if allowed:
            sema.optimize_for_inference(model)
        else:
            with pytest.raises(sema.UnsupportedError, match="more than 1e-03"):
                sema.optimize_for_inference(model)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (nn.ReLU(), {}, sema.UnsupportedError, "has no parameters"),
        (nn.Conv2d(4, 2, 1), {}, sema.UnsupportedError, r"does not run on a batch of \(1, 3, 224, 224\)"),
        (nn.Conv2d(3, 2, 1), {"example_size": (3, 8, 8)}, ValueError, r"example_size must be \(B, C, H, W\)"),
        (nn.Conv2d(3, 2, 1), {"dtype": torch.int8}, ValueError, "dtype must be one of"),
        (nn.Conv2d(3, 2, 1, device="meta"), {}, sema.UnsupportedError, "the model is on meta"),
    ],
)
def test_what_has_no_form_is_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        sema.optimize_for_inference(model, **options)
