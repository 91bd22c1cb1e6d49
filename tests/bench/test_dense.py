"""Detectors and segmenters around backbones: their parts against torchvision's, their counts, what they refuse."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.ops import roi_align as torchvision_roi_align

from sema_bench.counting.by_torch import count_with_torch
from sema_bench.worker.dense import FeaturePyramid, MaskRcnnHead, Pyramid, roi_align

WIDTHS = (256, 512, 1024, 2048)  # of ResNet-50


def macs(run: nn.Module, *inputs: object) -> int:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.run = run

        def forward(self, _: Tensor) -> object:
            return self.run(*inputs)

    return count_with_torch(Closed(), torch.empty(0, device="meta"))[0][""].macs


def params(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with torch.device("meta"):
        return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81).eval()


def test_the_neck_has_the_parameters_and_macs_of_torchvisions(theirs: nn.Module) -> None:
    grids = [(25, 40), (13, 20), (7, 10), (4, 5)]
    maps = [torch.empty(1, width, *grid, device="meta") for width, grid in zip(WIDTHS, grids, strict=True)]
    with torch.device("meta"):
        ours = FeaturePyramid(Pyramid(WIDTHS, (4, 8, 16, 32)))
    assert params(ours) == params(theirs.backbone.fpn)
    assert ours.macs(grids)[0].total == macs(theirs.backbone.fpn, OrderedDict(zip("abcd", maps, strict=True)))
    assert ours.macs(grids)[1] == [each.shape[2:] for each in ours(maps)]


def test_the_head_has_the_parameters_and_macs_of_torchvisions(theirs: nn.Module) -> None:
    grids = [(25, 40), (13, 20), (7, 10), (4, 5), (2, 3)]
    maps = [torch.empty(1, 256, *grid, device="meta") for grid in grids]
    with torch.device("meta"):
        ours = MaskRcnnHead(classes=81)
    rois, rpn = theirs.roi_heads, theirs.rpn.head
    background = 1024 + 1  # the scores of ours have one more class
    parts = (rpn, rois.box_head, rois.box_predictor, rois.mask_head, rois.mask_predictor)
    assert params(ours) - background == params(*parts)
    counted = macs(rpn, maps) + sum(
        macs(part, torch.empty(count, *shape, device="meta"))
        for part, count, shape in (
            (rois.box_head, 1000, (256, 7, 7)),
            (rois.box_predictor, 1000, (1024,)),
            (rois.mask_head, 100, (256, 14, 14)),
            (rois.mask_predictor, 100, (256, 14, 14)),
        )
    )
    assert ours.macs(grids).total - 1000 * 1024 == counted
    assert [tuple(each.shape) for each in ours(maps)[2:]] == [(1, 1000, 82), (1, 1000, 324), (1, 100, 81, 28, 28)]


@torch.no_grad()
def test_the_neck_gives_the_numbers_of_torchvisions() -> None:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    torch.manual_seed(0)
    widths = (3, 5, 7, 9)
    ours = FeaturePyramid(Pyramid(widths, (4, 8, 16, 32)))
    fpn = FeaturePyramidNetwork(widths, 256, extra_blocks=LastLevelMaxPool())
    for mine, its in zip(ours.parameters(), fpn.parameters(), strict=True):
        mine.copy_(its)
    maps = [torch.randn(1, c, *grid) for c, grid in zip(widths, [(13, 9), (7, 5), (4, 3), (2, 2)], strict=True)]
    for mine, its in zip(ours(maps), fpn(OrderedDict(zip("abcd", maps, strict=True))).values(), strict=True):
        assert torch.allclose(mine, its, atol=1e-5)


def test_samples_of_boxes_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, side, 2 * side, dtype=torch.float64) for side in (32, 16, 8, 4)]
    boxes = MaskRcnnHead(classes=1).boxes[:, :5].double()
    ours = roi_align([*maps, maps[-1]], boxes, 7).unflatten(0, (2, -1))  # (image, 4 maps · 5 boxes, 3, 7, 7)
    for level, each in enumerate(maps):
        pixels = boxes[level] * torch.tensor([256, 128, 256, 128])
        expected = torchvision_roi_align(each, [pixels, pixels], 7, 32 / 128 / 2**level, 2, aligned=True)
        assert torch.allclose(ours[:, 5 * level : 5 * level + 5].flatten(0, 1), expected)


def test_proposals_lie_inside_the_image_and_where_the_rule_of_fpn_puts_them() -> None:
    boxes = MaskRcnnHead(classes=1).boxes
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    sides = (boxes[..., 2:] - boxes[..., :2]) * torch.tensor([1280, 800])
    level = torch.floor(4 + torch.log2(sides.prod(-1).sqrt() / 224)).clamp(2, 5)
    assert torch.equal(level, torch.arange(2.0, 6)[:, None].expand(4, 250))
