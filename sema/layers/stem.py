"""The convolutional stem of MILA (arXiv 2405.16605): it turns an image into a map a quarter as large."""

from __future__ import annotations

from torch import Tensor, nn

from sema.layers.conv import conv_norm_act
from sema.layers.counted import Counted


class Stem(Counted):
    """(B, H, W, in_chans) → (B, ⌈⌈H/2⌉/2⌉, ⌈⌈W/2⌉/2⌉, C): bias-free convolutions, each with batch norm.

    in_chans → C/2 at stride 2; a residual of two 3×3 convolutions; C/2 → 4C at stride 2; 1×1 to C.
    """

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the stem halves its channels: dim must be even; got {dim}")
        half = dim // 2
        self.conv1 = conv_norm_act(nn.Conv2d(in_chans, half, 3, 2, 1, bias=False))
        self.conv2 = nn.Sequential(
            conv_norm_act(nn.Conv2d(half, half, 3, 1, 1, bias=False)),
            conv_norm_act(nn.Conv2d(half, half, 3, 1, 1, bias=False), act=False),
        )
        self.conv3 = nn.Sequential(
            conv_norm_act(nn.Conv2d(half, 4 * dim, 3, 2, 1, bias=False)),
            conv_norm_act(nn.Conv2d(4 * dim, dim, 1, bias=False), act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x.permute(0, 3, 1, 2))
        x = x + self.conv2(x)
        # An NCHW image leaves the stem in NCHW: one copy here keeps every later block channels-last in memory.
        return self.conv3(x).permute(0, 2, 3, 1).contiguous()
