"""The step between two stages of MILA (arXiv 2405.16605): half the size, twice the channels."""

from __future__ import annotations

from torch import Tensor, nn

from sema.layers.conv import ConvNormAct, chain_macs
from sema.macs import Grid, Macs


class Downsample(nn.Module):
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C): 1×1 to 8C, depthwise 3×3 at stride 2, 1×1 to 2C.

    ReLU after the first two, batch norm after the last, biases in all three, as in the official code.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = 8 * dim
        self.conv = nn.Sequential(
            ConvNormAct(dim, wide, kernel_size=1, bias=True, norm=False),
            ConvNormAct(wide, wide, stride=2, groups=wide, bias=True, norm=False),
            ConvNormAct(wide, 2 * dim, kernel_size=1, bias=True, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid`` tokens, and the size of the map that it gives."""
        return chain_macs(self.conv, grid)
