"""The convolutional stem of MILA (arXiv 2405.16605): an image to a map a quarter as large."""

from __future__ import annotations

from torch import Tensor, nn

from sema.layers.conv import ConvNormAct, chain_macs
from sema.macs import Grid, Macs


class Stem(nn.Module):
    """(B, in_chans, H, W) → (B, C, ⌈⌈H/2⌉/2⌉, ⌈⌈W/2⌉/2⌉): bias-free convolutions, each with batch norm.

    in_chans → C/2 at stride 2; a residual of two 3×3 convolutions; C/2 → 4C at stride 2; 1×1 to C.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the stem halves its channels: dim must be even; got {dim}")
        self.conv1 = ConvNormAct(in_chans, dim // 2, stride=2)
        self.conv2 = nn.Sequential(ConvNormAct(dim // 2, dim // 2), ConvNormAct(dim // 2, dim // 2, act=False))
        self.conv3 = nn.Sequential(
            ConvNormAct(dim // 2, 4 * dim, stride=2),
            ConvNormAct(4 * dim, dim, kernel_size=1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = x + self.conv2(x)
        return self.conv3(x)

    def macs(self, resolution: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on an image of ``resolution`` pixels, and the size of the map that it gives."""
        grid = self.conv1.out_grid(resolution)
        inner, _ = chain_macs(self.conv2, grid)
        outer, out_grid = chain_macs(self.conv3, grid)
        return self.conv1.macs(resolution).plus(inner).plus(outer), out_grid
