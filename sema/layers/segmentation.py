"""A light segmentation head: it turns the maps of all stages into the logits of every pixel.

Legend: B batch, H W pixels of the image, Cᵢ channels of map i, D channels of the head.

It is a feature pyramid (Lin et al., arXiv 1612.03144) with one output, a lighter semantic FPN (arXiv 1901.02446). Each
map is normed and projected to D channels. The coarser sum is enlarged to the next finer map and added to it. A 3×3
convolution of the finest sum leads to the logits, which are enlarged to the image. Both enlargements are bilinear.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.counted import conv2d_macs, layer_macs
from sema.macs import Grid, Macs


class SegmentationHead(nn.Module):
    """Maps (B, Hᵢ, Wᵢ, Cᵢ), fine to coarse → logits (B, num_classes, H, W).

    Args:
        channels: Cᵢ of each map; D is that of the finest.
        num_classes: classes of a pixel.
    """

    def __init__(self, channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        dim = channels[0]
        self.laterals = nn.ModuleList(nn.Sequential(nn.LayerNorm(each), nn.Linear(each, dim)) for each in channels)
        self.smooth = nn.Conv2d(dim, dim, 3, padding=1)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Compute the logits at ``size`` (H, W)."""
        finest, *coarser = (
            lateral(each).permute(0, 3, 1, 2) for lateral, each in zip(self.laterals, maps, strict=True)
        )
        total = None
        for each in (*reversed(coarser), finest):
            total = each if total is None else each + _enlarged(total, (each.shape[2], each.shape[3]))
        assert total is not None
        logits = self.classifier(F.relu(self.smooth(total)).permute(0, 2, 3, 1))
        return _enlarged(logits.permute(0, 3, 1, 2), size)

    def macs(self, grids: Sequence[Grid]) -> Macs:
        """Count the MACs on maps of these ``grids``."""
        total = conv2d_macs(self.smooth, grids[0])[0].plus(layer_macs(self.classifier, grids[0])[0])
        for lateral, grid in zip(self.laterals, grids, strict=True):
            total = total.plus(layer_macs(lateral, grid)[0])
        return total


def _enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
