"""Test models as backbones: maps, their channels and strides, what is left out, and torchvision's FPN on top."""

from __future__ import annotations

import pytest
import torch
from test_model_contract import over_models
from torch_counter import count_macs

import sema

SIZE = (97, 131)
#: One of each class of models.
CLASSES = [
    "sema_micro",
    "sema_micro[head=fpn]",
    "deit_tiny",
    "vminet_ti",
    "sima_nano_12_p16",
    "cvt_13",
    "vmamba_tiny_s1l8",
    "vim_tiny",
]


def sides(name: str, stride: int) -> list[int]:
    """Return the sides of a map at ``SIZE``, from the strides of the papers."""
    if name.startswith(("deit", "sima_deit", "vim_")):  # an incomplete last patch is left out
        return [side // stride for side in SIZE]
    if "cvt" in name:  # 7×7 with stride 4 and padding 2
        return [-(-((side + 1) // 4) // (stride // 4)) for side in SIZE]
    return [-(-side // stride) for side in SIZE]


@over_models
def test_channels_and_strides_are_as_described_at_odd_sizes(name):
    with torch.device("meta"):
        model = sema.backbone(name)
        maps = model(torch.empty(2, 3, *SIZE))
    described = zip(model.channels, model.strides, strict=True)
    assert [tuple(each.shape) for each in maps] == [(2, dim, *sides(name, stride)) for dim, stride in described]


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("name", CLASSES)
def test_what_runs_after_the_last_map_is_left_out_and_all_else_is_trained(name, index):
    ran = []
    with torch.device("meta"):
        model = sema.backbone(name, [index])
        for key, module in model.model.named_modules():
            module.register_forward_hook(lambda *_, key=key: ran.append(key))
        model(torch.empty(2, 3, 64, 96))[0].square().sum().backward()
        total = count_macs(lambda: model.eval()(torch.empty(1, 3, 64, 96)))
    described = model.feature_info[index]["module"]
    parent = described.rpartition(".")[0]
    assert [key for key in ran if key.rpartition(".")[0] == parent][-1] == described
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert model.macs((64, 96)).total == total


@pytest.mark.parametrize("name", CLASSES)
def test_maps_are_those_of_the_whole_model_in_the_order_asked_for(name):
    torch.manual_seed(0)
    whole = sema.create_model(name).eval()
    torch.manual_seed(0)
    model = sema.backbone(name, (-1, 0), channels_first=False).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        maps, expected = model(image), whole.forward_features(image)
        fast = sema.optimize_for_inference(model, example_size=image.shape)(image)
    assert torch.equal(maps[0], expected[-1])
    assert torch.equal(maps[1], expected[0])
    torch.testing.assert_close(fast, maps, rtol=1e-3, atol=1e-4)


def test_weights_come_from_a_checkpoint_of_the_whole_model(tmp_path):
    whole, file = sema.create_model("sema_micro", num_classes=5), tmp_path / "weights.safetensors"
    sema.save_checkpoint(whole, file)
    model = sema.backbone("sema_micro", pretrained=file, num_classes=5)
    assert all(torch.equal(value, whole.state_dict()[key]) for key, value in model.model.state_dict().items())
    with pytest.raises(sema.CheckpointError, match="It has 5 classes; build the model with num_classes=5"):
        sema.backbone("sema_micro", pretrained=file)


@pytest.mark.parametrize("indices", [(0, 3), (), 0, 4, -1, ["a"]])
def test_maps_that_the_model_lacks_are_refused(indices):
    with torch.device("meta"), pytest.raises(ValueError, match="cvt_13 has maps 0 to 2; got out_indices="):
        sema.backbone("cvt_13", indices)


def test_timm_builds_backbones_that_drive_the_fpn_of_torchvision():
    fpn = pytest.importorskip("torchvision.ops").FeaturePyramidNetwork
    timm = pytest.importorskip("timm")
    sema.register_with_timm()
    model = timm.create_model("sema_tiny", features_only=True, out_indices=(1, 2, 3)).eval()
    assert model.feature_info.channels() == model.channels == [128, 256, 512]
    assert model.feature_info.reduction() == model.strides == [8, 16, 32]
    assert timm.create_model("sema_micro").feature_info[0]["num_chs"] == 32
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, *SIZE))
        pyramid = fpn(model.feature_info.channels(), 32)(dict(zip("abc", maps, strict=True)))
    assert [tuple(level.shape) for level in pyramid.values()] == [(1, 32, *each.shape[2:]) for each in maps]
    with pytest.raises(ValueError, match="no pretrained weights come with 'sema_tiny'; use sema"):
        timm.create_model("sema_tiny", features_only=True, pretrained=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_backbones_compile_as_one_graph(backend):
    torch.compiler.reset()
    model, image = sema.backbone("sema_micro").eval(), torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True, backend=backend)(image)
        torch.testing.assert_close(compiled, model(image), rtol=1e-4, atol=1e-5)
