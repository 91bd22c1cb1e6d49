"""Models as backbones: maps, their channels and strides, in timm and under torchvision's FPN."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from test_model_contract import SMALLEST

import sema
from sema.feature_maps import feature_info

SIZE = (97, 131)


@pytest.mark.parametrize("name", [*SMALLEST, "sema_micro"])
def test_maps_have_the_channels_and_strides_that_are_stated_at_odd_sizes(name):
    with torch.device("meta"):
        model = sema.backbone(name)
        maps = model(torch.empty(2, 3, *SIZE))
    rounds_down = name.startswith(("deit", "sima_deit", "vim"))
    assert len(maps) == len(model.feature_info)
    for each, info in zip(maps, model.feature_info, strict=True):
        sides = [side // info["reduction"] if rounds_down else -(-side // info["reduction"]) for side in SIZE]
        if "cvt" in name:
            sides = [-(-((side + 1) // 4) // (info["reduction"] // 4)) for side in SIZE]
        assert each.shape == (2, info["num_chs"], *sides)
        model.model.get_submodule(info["module"])


@pytest.mark.parametrize("name", ["sema_micro", "deit_tiny", "sima_nano_12_p16", "cvt_13", "vminet_ti"])
def test_maps_are_those_of_the_model_and_train_every_parameter(name):
    torch.manual_seed(0)
    whole = sema.create_model(name).eval()
    torch.manual_seed(0)
    model = sema.backbone(name, (-1, 0), channels_first=False).eval()
    image = torch.randn(1, 3, 64, 96)
    maps, expected = model(image), whole.forward_features(image)
    assert torch.equal(maps[0], expected[-1])
    assert torch.equal(maps[1], expected[0])
    sum(each.square().sum() for each in model.train()(image)).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_an_index_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match="cvt_13 has maps 0 to 2"):
        sema.backbone("cvt_13", (0, 3))


def test_maps_drive_the_fpn_of_torchvision_and_compile():
    fpn = pytest.importorskip("torchvision.ops").FeaturePyramidNetwork
    timm = pytest.importorskip("timm")
    sema.register_with_timm()
    model = timm.create_model("sema_tiny", features_only=True, out_indices=(1, 2, 3)).eval()
    assert model.feature_info.channels() == [128, 256, 512]
    assert model.feature_info.reduction() == [8, 16, 32]
    assert timm.create_model("sema_micro").feature_info == feature_info("sema_micro")
    image = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        maps = model(image)
        pyramid = fpn(model.feature_info.channels(), 32)(OrderedDict(zip("abc", maps, strict=True)))
        compiled = torch.compile(model, fullgraph=True, backend="eager")(image)
    assert [level.shape[2:] for level in pyramid.values()] == [each.shape[2:] for each in maps]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(compiled, maps, strict=True))
