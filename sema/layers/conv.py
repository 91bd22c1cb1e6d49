"""Convolutions: depthwise on (B, H, W, C) maps, and conv + norm + activation on (B, C, H, W) ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sema.macs import Grid, Macs, conv_macs


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution, same size, on a channels-last map (B, H, W, C).

    The permuted input is a ``channels_last`` tensor as it stands and the convolution answers in that format,
    so neither permutation copies.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def reference(self, x: Tensor) -> Tensor:
        """Sum of shifted copies: out[r, c] = bias + Σ_{u,v} weight[u, v] · x[r+u−k, c+v−k], zero outside the map."""
        height, width = x.shape[1:3]
        reach = self.kernel_size[0] // 2
        padded = F.pad(x, (0, 0, reach, reach, reach, reach))
        out = x.new_zeros(x.shape) if self.bias is None else self.bias.expand_as(x)
        for u in range(self.kernel_size[0]):
            for v in range(self.kernel_size[1]):
                out = out + self.weight[:, 0, u, v] * padded[:, u : u + height, v : v + width]
        return out

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on a map of ``grid`` tokens."""
        return conv_macs(grid, self.in_channels, self.out_channels, self.kernel_size[0], groups=self.groups)


class StridedConv2d(nn.Conv2d):
    """Dense convolution of stride 2 with bias on a map (B, H, W, C): (B, ⌈H/2⌉, ⌈W/2⌉, C')."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # A map in channels-first memory is copied once, here: everything behind it then stays channels-last.
        x = x.contiguous()
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid``, and the size of its output."""
        halved = (-(-grid[0] // 2), -(-grid[1] // 2))
        return conv_macs(halved, self.in_channels, self.out_channels, self.kernel_size[0]), halved


class MapBatchNorm2d(nn.BatchNorm2d):
    """Batch norm on a map (B, H, W, C); neither permutation copies."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Pointwise(nn.Linear):
    """Linear map of each token of a map (B, H, W, C); on a CPU as a 1×1 convolution, as in VMINet's official code.

    There the convolution goes to oneDNN and the linear map to MKL: VMINet-XS at 512 took 58 ms in place of 74 (two
    threads, AMD EPYC). Weights and numbers are those of the linear map.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


class ConvNormAct(nn.Module):
    """Convolution, optional batch norm, optional ReLU, on (B, C, H, W) in any memory format.

    The padding is ``kernel_size // 2``. A 3×3 convolution of stride 2 therefore gives ⌈H/2⌉ × ⌈W/2⌉ on an odd map
    too: the zero row that it pads at the bottom is the row that padding the map to an even size would add.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.relu(x, inplace=True) if self.act else x

    def out_grid(self, grid: Grid) -> Grid:
        """Return the size of the map that an input map of ``grid`` gives."""
        stride = self.conv.stride[0]
        return -(-grid[0] // stride), -(-grid[1] // stride)

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on an input map of ``grid``."""
        conv = self.conv
        return conv_macs(
            self.out_grid(grid), conv.in_channels, conv.out_channels, conv.kernel_size[0], groups=conv.groups
        )


def chain_macs(convs: nn.Sequential, grid: Grid) -> tuple[Macs, Grid]:
    """Return the MACs of successive ``ConvNormAct`` layers on a map of ``grid``, and the size of their output."""
    total = Macs()
    for conv in convs:
        assert isinstance(conv, ConvNormAct)
        total, grid = total.plus(conv.macs(grid)), conv.out_grid(grid)
    return total, grid
