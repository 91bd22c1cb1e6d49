"""The step between two stages of MILA (arXiv 2405.16605): half the size, twice the channels."""

from __future__ import annotations

from torch import Tensor, nn

from sema.layers.conv import conv_norm_act
from sema.layers.counted import Counted


class Downsample(Counted):
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C): 1×1 to 8C, depthwise 3×3 at stride 2, 1×1 to 2C.

    ReLU after the first two, batch norm after the last, biases in all three, as in the official code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 8 * dim
        self.conv = nn.Sequential(
            conv_norm_act(nn.Conv2d(dim, wide, 1), norm=False),
            conv_norm_act(nn.Conv2d(wide, wide, 3, 2, 1, groups=wide), norm=False),
            conv_norm_act(nn.Conv2d(wide, 2 * dim, 1), act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
