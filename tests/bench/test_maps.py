"""Test maps: each against the plain formula on networks with a known answer, and the command with its errors."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_support import invoke
from PIL import Image
from torch import Tensor, nn

import sema
from sema.attention.base import Attention
from sema.models.swin import Swin
from sema_bench.cli.maps import _trained_on
from sema_bench.errors import ProbeError, UsageError
from sema_bench.studies.dispersion.coefficients import attention_inputs
from sema_bench.studies.maps.cam import _LIBRARY, class_map
from sema_bench.studies.maps.coefficients import attention_maps, has_coefficients, rollout
from sema_bench.studies.maps.field import area_pixels, receptive_field
from sema_bench.studies.maps.last_map import as_map, token_grid
from sema_bench.training.checkpoint import write_checkpoint

MIDDLE = (0.5, 0.5)


class Blur(nn.Module):
    """The mean of 5×5 pixels, as a map."""

    def forward_features(self, x: Tensor) -> list[Tensor]:
        return [nn.functional.avg_pool2d(x, 5, 1, 2).permute(0, 2, 3, 1)]


class Tiny(nn.Module):
    """A convolution, a nonlinear function, and a classifier of all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.head = nn.Linear(4 * 4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).tanh().flatten(1))


def _record(outputs: dict[str, Tensor], name: str, module: nn.Module, args: object, output: Tensor) -> None:
    outputs.setdefault(name, output)


# Grad-CAM


def test_grad_cam_is_the_formula_with_a_gradient_by_hand() -> None:
    torch.manual_seed(0)
    network, image = Tiny().double().eval(), torch.randn(1, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        features = network.conv(image)[0]  # (C, H, W)
        slopes = network.head.weight[3].reshape(4, 4, 6) * (1 - features.tanh().square())
        cam = (slopes.mean(dim=(1, 2))[:, None, None] * features).sum(dim=0).clamp(min=0)
    assert cam.any()
    own = class_map(network, image, 3)
    assert own.label == 3
    np.testing.assert_allclose(own.weights, cam / cam.max(), rtol=1e-12)
    assert class_map(network, image, None).label == int(network(image).argmax())
    with pytest.raises(UsageError, match="classes 0 to 4; got 5"):
        class_map(network, image, 5)


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("sema_micro[vmi]", (16, 24)),
        ("deit_tiny", (4, 6)),  # its head reads only the class token, so the last map that counts is one earlier
        pytest.param("vim_tiny", (4, 6), marks=pytest.mark.slow),
        ("sima_nano_12_p16", (4, 6)),
        ("cvt_13", (4, 6)),
        ("swin_tiny", (2, 3)),
    ],
)
def test_every_family_has_a_map_on_which_the_class_depends(name: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    options = {"img_size": (64, 96)} if name[:3] in ("dei", "vim") else {}
    network = sema.create_model(name, num_classes=10, **options).eval()
    assert class_map(network, torch.randn(1, 3, 64, 96), 1).weights.shape == grid


@pytest.mark.parametrize(
    ("name", "last", "normed", "options"),
    [
        ("test_resnet", "layer4", "layer4", {}),
        ("test_vit", "blocks", "blocks", {"img_size": 96, "global_pool": "avg"}),
        (
            "swin_tiny_patch4_window7_224",
            "layers.3",
            "norm",
            {"img_size": 96, "window_size": 3, "embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)},
        ),
    ],
)
def test_maps_of_timm_are_those_of_a_naive_gradient_at_its_last_block(
    name: str, last: str, normed: str, options: dict[str, Any]
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=10, **options).double().eval()
    image = torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    outputs: dict[str, Tensor] = {}
    for each in (last, normed):
        network.get_submodule(each).register_forward_hook(functools.partial(_record, outputs, each))
    score = network(image)[0, 1]

    def nhwc(x: Tensor) -> Tensor:
        if x.ndim == 3:
            return x[0, network.num_prefix_tokens :].reshape(6, 6, -1)  # patches of 16 pixels
        return x[0] if name.startswith("swin") else x[0].permute(1, 2, 0)

    (slopes,) = torch.autograd.grad(score, outputs[normed], retain_graph=True)
    cam = (nhwc(outputs[normed]) * nhwc(slopes).mean(dim=(0, 1))).sum(dim=-1).clamp(min=0)
    assert cam.any()
    np.testing.assert_allclose(class_map(network, image.detach(), 1).weights, (cam / cam.max()).detach(), rtol=1e-8)

    features = nhwc(outputs[last])
    height, width = features.shape[:2]
    (gradient,) = torch.autograd.grad(features[height // 2, width // 2].clamp(min=0).sum(), image)
    expected = gradient[0].abs().sum(dim=0)
    np.testing.assert_allclose(
        receptive_field(network, [image.detach()], MIDDLE), expected / expected.sum(), rtol=1e-8, atol=1e-15
    )


def test_methods_of_the_library_get_the_same_map() -> None:
    library = pytest.importorskip("pytorch_grad_cam", reason="needs pytorch-grad-cam: pip install 'sema-bench[cam]'")
    torch.manual_seed(0)
    network, image = sema.create_model("deit_tiny", num_classes=10, img_size=64).eval(), torch.randn(1, 3, 64, 64)
    assert all(hasattr(library, name) for name in _LIBRARY.values())
    own = class_map(network, image, 2).weights
    _LIBRARY["same"] = "GradCAM"
    try:
        theirs = class_map(network, image, 2, "same").weights
    finally:
        del _LIBRARY["same"]
    sampled = theirs[8::16, 8::16]  # at the middle of each token
    assert np.corrcoef(own.ravel(), sampled.ravel())[0, 1] > 0.98  # theirs is resized to the image
    assert class_map(network, image, 2, "layercam").weights.shape == (64, 64)


def test_a_view_of_a_block_is_a_map_only_if_it_covers_the_image() -> None:
    model: Any = nn.Identity()
    shape = (64, 96)
    tokens = torch.arange(24.0).reshape(1, 24, 1)
    for channels in (1, 24):
        nhwc = tokens.reshape(1, 4, 6, 1).expand(1, 4, 6, channels)
        for output in (nhwc, nhwc.permute(0, 3, 1, 2), torch.cat((tokens[:, :1], tokens), dim=1)):
            view = as_map(output, model, shape)
            assert view is not None
            assert torch.equal(view[..., :1], nhwc[..., :1])
    model.class_in_middle = True
    view = as_map(torch.cat((tokens[:, :12], torch.full((1, 1, 1), -1.0), tokens[:, 12:]), dim=1), model, shape)
    assert view is not None
    assert torch.equal(view.flatten(), tokens.flatten())
    del model.class_in_middle
    for output in (torch.zeros(1, 8, 1, 1), torch.zeros(1, 10), torch.zeros(1, 23, 8), torch.zeros(1, 8, 9, 2), None):
        assert as_map(output, model, shape) is None


# Coefficients


def test_a_map_is_the_row_of_the_token_in_every_head() -> None:
    torch.manual_seed(0)
    network = sema.create_model("sema_micro[window]", num_classes=10).eval()
    image = torch.randn(1, 3, 64, 96)
    maps = attention_maps(network, image, (0.5, 0.99))
    assert [each.layer for each in maps] == [0, 1]
    # The window of token (8, 23) in a grid of 16×24 has rows 7 to 13 and columns 21 to 23.
    inside = np.zeros((16, 24), dtype=bool)
    inside[7:14, 21:24] = True
    assert all(np.array_equal(head > 0, inside) for head in maps[0].heads)
    with torch.no_grad():
        _, attention, x = attention_inputs(network, image)[1]
        row = attention.coefficients(x)[0, :, 8 * 24 + 23]
    np.testing.assert_allclose(maps[1].heads.reshape(len(row), -1), row, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "where"), [("sema_micro[mila]", (0.4, 0.6)), ("deit_tiny", None), ("deit_tiny", MIDDLE)]
)
def test_rollout_is_the_product_of_the_matrices(name: str, where: tuple[float, float] | None) -> None:
    torch.manual_seed(0)
    options = {"img_size": (64, 96)} if name == "deit_tiny" else {}
    network = sema.create_model(name, num_classes=10, **options).double().eval()
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    product: Tensor | None = None
    with torch.no_grad():
        for _, attention, x in attention_inputs(network, image):
            weights = attention.coefficients(x)[0].abs()
            weights = (weights / weights.sum(dim=-1, keepdim=True)).mean(dim=0)
            step = (weights + torch.eye(len(weights))) / 2
            product = step if product is None else step @ product
    assert product is not None
    extra, height, width = (1, 4, 6) if name == "deit_tiny" else (0, 16, 24)
    query = 0 if where is None else extra + int(where[0] * height) * width + int(where[1] * width)
    row = rollout(network, image, where)
    assert product[query].sum().item() == pytest.approx(1, rel=1e-10)
    np.testing.assert_allclose(row, product[query, extra:].reshape(height, width), rtol=1e-10)


def test_rollout_divides_the_share_of_a_token_among_those_it_covers() -> None:
    torch.manual_seed(0)
    network = Swin(32, (1, 1, 1, 1), ("inline", "window", "inline", "window"), num_classes=10).double().eval()
    image = torch.randn(1, 3, 100, 124, dtype=torch.float64)
    # Find the owner of each token independently: the token of its 2×2 square.
    row: Tensor | None = None
    grid: tuple[int, int] | None = None
    with torch.no_grad():
        for _, attention, x in reversed(attention_inputs(network, image)):
            height, width = x.shape[1:3]
            if row is None or grid is None:
                row = torch.zeros(height * width, dtype=torch.float64)
                row[2 * width + 1] = 1  # of the 4×4 tokens, row ⌊0.6 · 4⌋ and column ⌊0.3 · 4⌋
            elif grid != (height, width):
                owner = torch.tensor([y // 2 * grid[1] + x // 2 for y in range(height) for x in range(width)])
                row = (row / owner.bincount())[owner]
            weights = attention.coefficients(x)[0].abs()
            weights = (weights / weights.sum(dim=-1, keepdim=True)).mean(dim=0)
            row, grid = row @ (weights + torch.eye(len(weights))) / 2, (height, width)
    assert row is not None
    own = rollout(network, image, (0.6, 0.3))
    assert own.shape == (25, 31)
    np.testing.assert_allclose(own.ravel(), row, rtol=1e-10, atol=1e-18)
    assert own.sum() == pytest.approx(1, rel=1e-10)


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = sema.create_model("sema_micro", attention="softmax").eval()
    next(module for module in model.modules() if isinstance(module, Attention)).qkv.weight.data.fill_(math.nan)
    image = torch.zeros(1, 3, 32, 32)
    for draw in (attention_maps, rollout):
        with pytest.raises(ProbeError, match=r"coefficients of attention \d are not finite"):
            draw(model, image, MIDDLE)
    with pytest.raises(ProbeError, match="features are not finite"):
        receptive_field(model, [image], MIDDLE)
    with pytest.raises(ProbeError, match="logits are not finite"):
        class_map(model, image, None)


def test_no_grid_has_any_number_of_tokens() -> None:
    assert token_grid(1, 197, 1.0) == (1, 14, 14)
    assert token_grid(1, 198, 1.0) == (2, 14, 14)
    assert token_grid(5, 7, 1.0) == (0, 5, 7)
    with pytest.raises(ProbeError, match="sequence of 23 tokens"):
        token_grid(1, 23, 1.0)


# The effective receptive field


def test_the_receptive_field_is_where_pixels_matter() -> None:
    image = torch.rand(1, 3, 20, 20, dtype=torch.float64)
    field = receptive_field(Blur(), [image], (0.5, 0.25))
    expected = np.zeros((20, 20))
    expected[8:13, 3:8] = 1 / 25
    np.testing.assert_allclose(field, expected, rtol=1e-10)
    assert (area_pixels(field, 0.5), area_pixels(field, 0.9)) == (13, 23)  # 12.5 and 22.5 of 25 equal pixels
    with pytest.raises(ProbeError, match="no pixel changes this token"):
        receptive_field(Blur(), [-image], MIDDLE)  # the rectifier leaves nothing
    with pytest.raises(ProbeError, match="no block gives a map"):
        receptive_field(nn.Identity(), [image], MIDDLE)


def test_the_field_is_a_mean_over_images_of_the_absolute_gradient() -> None:
    torch.manual_seed(0)
    network, images = Tiny().double(), [torch.randn(1, 3, 16, 24, dtype=torch.float64) for _ in range(3)]
    expected = torch.zeros(16, 24, dtype=torch.float64)
    with torch.no_grad():
        for image in images:
            on = (network.conv(image)[0, :, 2, 3] > 0).double()
            expected[8:12, 12:16] += torch.einsum("c,cihw->ihw", on, network.conv.weight).abs().sum(dim=0)
    field = receptive_field(network, images, MIDDLE)
    np.testing.assert_allclose(field, expected / expected.sum(), rtol=1e-10)


def test_the_area_is_the_smallest_share_of_pixels() -> None:
    field = np.array([[0.1, 0.5, 0.0], [0.05, 0.3, 0.05]])
    assert [area_pixels(field, share) for share in (0.5, 0.51, 0.9, 0.91, 1.0)] == [1, 2, 3, 4, 5]
    assert area_pixels(np.ones((10, 10)), 0.9) == 90


# The command


def test_the_command_draws_models_side_by_side_at_several_sizes(tmp_path: Path) -> None:
    code, shown, err = invoke(
        *("maps", "--models", "sema_micro[window,head=max],sema_micro[vmi]", "--res", "64,64x96", "--samples", "2"),
        *("--seeds", "2", "--class", "7", "--out", str(tmp_path), "--run", "m"),
    )
    assert code == 0, err
    assert {path.name for path in (tmp_path / "m" / "plots").glob("*.png")} == {
        "maps.png",
        "heads-1.png",
        "heads-2.png",
    }
    assert "effective receptive field" in shown
    table = pd.read_csv(tmp_path / "m" / "erf.csv")
    assert list(zip(table["height_px"], table["width_px"], table["seed"], strict=True)) == [
        *((64, 64, 0), (64, 64, 1), (64, 96, 0), (64, 96, 1)) * 2
    ]
    assert (table["images"] == "noise").all()
    assert table.groupby(["model", "width_px"])["area_90_share"].nunique().min() == 2, "a seed draws new weights"
    assert (table["area_50_share"] * table["height_px"] * table["width_px"]).round().tolist() == list(
        table["area_50_px"]
    )
    assert (table["area_50_px"] < table["area_90_px"]).all()


def test_a_picture_of_ones_own_is_drawn_at_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (77, 101, 3), dtype=np.uint8)).save(tmp_path / "own.png")
    base = ("maps", "--models", "sema_micro", "--image", str(tmp_path / "own.png"), "--samples", "1")
    code, _, err = invoke(*base, "--out", str(tmp_path), "--run", "m", "--show", "cam,erf")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "m" / "erf.csv")
    assert (table.loc[0, "height_px"], table.loc[0, "width_px"]) == (77, 101)


def test_a_model_of_pixels_has_a_field_and_models_and_maps_named_twice_are_drawn_once(tmp_path: Path) -> None:
    model = "sema_micro[head=fpn]"
    base = ("maps", "--data", "digits:segment", "--res", "64", "--samples", "1", "--out", str(tmp_path), "--run", "m")
    code, _, err = invoke(*base, "--models", f"{model},{model}", "--show", "erf,erf")
    assert code == 0, err
    assert pd.read_csv(tmp_path / "m" / "erf.csv")["model"].tolist() == [model]


def test_images_of_the_training_are_those_of_the_field(tmp_path: Path) -> None:
    name = "sema_micro[linear,head=max]"
    weights = tmp_path / "weights.safetensors"
    write_checkpoint(weights, sema.create_model(name, num_classes=10).state_dict(), {"data": "digits:zoom"})
    base = ("maps", "--checkpoint", f"{name}={weights}", "--res", "64", "--samples", "2", "--out", str(tmp_path))
    code, _, err = invoke(*base, "--show", "erf", "--seeds", "2", "--run", "m")
    assert code == 0, err
    table = pd.read_csv(tmp_path / "m" / "erf.csv")
    assert set(table["images"]) == {"digits:zoom"}
    assert table["area_90_share"].nunique() == 2, "a seed draws other images"
    write_checkpoint(weights, {}, {"data": "folder:/elsewhere"})
    assert _trained_on(weights) == "", "files may be gone"


#: A model without maps.
FLAT = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10))
"""
MICRO = ("--models", "sema_micro", "--res", "64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "maps needs models"),
        ((*MICRO, "--class", "10"), "this model has classes 0 to 9; got 10"),
        (("--models", "sema_micro[head=fpn]", "--res", "64"), "and this model gives one of each pixel; use --show erf"),
        ((*MICRO, "--class", "cat"), "--class takes the number of a class"),
        ((*MICRO, "--cam", "grad"), "unknown method of --cam 'grad'"),
        ((*MICRO, "--show", "cam,attention"), "unknown map 'attention'"),
        ((*MICRO, "--token", "2,0"), "two shares from 0 to 1"),
        ((*MICRO, "--token", "nose"), "two shares from 0 to 1"),
        ((*MICRO, "--token", "class"), "has no class token"),
        ((*MICRO, "--show", "erf", "--class", "1"), "--class and --cam are for cam"),
        ((*MICRO, "--show", "cam", "--seeds", "3"), "--samples and --seeds are for erf"),
        (("--models", "sema_micro[vmi]", "--res", "64", "--show", "rollout"), "no attention of it has coefficients"),
        (("--models", "flat.py:build", "--res", "64"), "depends on no map of more than one token; give a larger image"),
        (("--models", "flat.py:build", "--res", "64", "--show", "erf"), "no block gives a map of more than one token"),
        ((*MICRO, "--image", "none.png"), "none.png cannot be read: No such file"),
        ((*MICRO, "--image", "text.png"), "text.png cannot be read: not an image"),
        ((*MICRO, "--image", "small.png"), "small.png is 1x3 pixels"),
        (("--models", "sema_micro", "--image", "small.png"), "small.png is 1x3 pixels"),
        ((*MICRO, "--image", "text.png", "--index", "1"), "drop one"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("text")
    Path("flat.py").write_text(FLAT)
    Image.new("RGB", (3, 1)).save("small.png")
    code, _, err = invoke("maps", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not Path("results").exists()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sema_bench.studies.maps.cam.importlib.util.find_spec", lambda name: None)
    code, _, err = invoke("maps", *MICRO, "--cam", "layercam")
    assert (code, "pip install 'sema-bench[cam]'" in err) == (2, True), err


def test_some_models_have_no_coefficients() -> None:
    names = {"sema_micro": True, "sema_micro[sema,pooling=max]": False, "sema_micro[vmi]": False, "cvt_13": False}
    assert {name: has_coefficients(sema.create_model(name)) for name in names} == names
