"""Test the contract of every model in the registry: any size, any batch, any layout of the image."""

from __future__ import annotations

import pytest
import torch
from torch_counter import count_macs

import sema

SIZES = [(64, 160), (136, 200), (225, 239)]
NAMES = sema.list_models()
#: The smallest of each family; the others differ only in size and are left to the slow tests.
SMALLEST = [
    "sema_tiny",
    "mila_tiny",
    "deit_tiny",
    "sima_deit_tiny",
    "vminet_ti",
    "vminet2_ti",
    "sima_nano_12_p16",
    "xcit_small_12_p16",
    "cvt_13",
    "sima_cvt_13",
    "swin_tiny",
    "flatten_swin_tiny",
    "inline_swin_tiny",
    "vmamba_tiny_s1l8",
    "vim_tiny",
]
#: Other forms of their windows, with other MACs.
FORMS = [
    f"{name}[windows={form}]"
    for name in ("swin_tiny", "flatten_swin_tiny", "inline_swin_tiny")
    for form in ("padded", "scaled")
]
LARGER = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in SMALLEST]

over_models = pytest.mark.parametrize("name", SMALLEST + LARGER)


def model_in_eval(name):
    """Build a model whose batch norms and layer scales have an effect."""
    model = sema.create_model(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for key, parameter in model.named_parameters():
            if "gamma" in key:
                parameter.uniform_(0.5, 1.5)
    return model.eval()


@over_models
def test_any_size_gives_finite_logits_that_do_not_depend_on_the_batch(name):
    model = model_in_eval(name)
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.inference_mode():
            together = model(images)
            alone = torch.cat([model(image) for image in images.split(1)])
        assert together.shape == (2, 1000)
        assert torch.isfinite(together).all()
        # Float32 rounding depends on the shapes of the products; scans amplify it.
        assert (together - alone).norm() <= 1e-3 * together.norm()
        assert not torch.allclose(together[0], together[1], rtol=0.05), "images must differ"


@over_models
def test_memory_format_of_the_image_does_not_matter(name):
    model, image = model_in_eval(name), torch.randn(1, 3, 97, 130)
    with torch.inference_mode():
        expected = model(image)
        got = model(image.contiguous(memory_format=torch.channels_last))
    assert (got - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("name", SMALLEST)
def test_float32_stays_near_float64(name):
    model, image = model_in_eval(name), torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        got = model(image).double()
        expected = model.double()(image.double())
    assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_is_trained(name):
    model = sema.create_model(name)
    out = model(torch.randn(2, 3, 64, 96))
    out.square().sum().backward()
    # An image this small has one window at the deepest stage, where a shift or a bias may have no effect.
    untouched = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALLEST + FORMS)
def test_macs_equal_what_torch_counts_at_odd_sizes(name):
    with torch.device("meta"):
        model = sema.create_model(name).eval()
    for size in ((225, 239), (64, 96)):
        image = torch.empty(1, 3, *size, device="meta")
        assert model.macs(size).total == count_macs(lambda image=image: model(image)), size


@over_models
def test_classes_and_channels_follow_the_arguments(name):
    with torch.device("meta"):
        model = sema.create_model(name, num_classes=7, in_chans=4)
    assert model(torch.empty(2, 4, 64, 64, device="meta")).shape == (2, 7)
    with pytest.raises(ValueError, match=r"expected an image batch \(B, 4, H, W\)"):
        model(torch.empty(2, 3, 64, 64, device="meta"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SMALLEST)
def test_logits_on_cuda_are_those_of_the_cpu(monkeypatch, name):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model, image = model_in_eval(name), torch.randn(1, 3, 225, 239)
    with torch.inference_mode():
        expected = model(image)
        got = model.cuda()(image.cuda()).cpu()
    assert (got - expected).norm() <= 1e-3 * expected.norm()
