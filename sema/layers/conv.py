"""Convolutions: on (B, H, W, C) maps, and conv + norm + activation on (B, C, H, W) ones."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MapConv2d(nn.Conv2d):
    """Convolution on a map (B, H, W, C); by default 3×3 with stride 2, which gives (B, ⌈H/2⌉, ⌈W/2⌉, C')."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        padding: int = 1,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        # A map in channels-first memory is copied once, here; everything after it then stays channels-last.
        return super().forward(x.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def shifted_sum(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve ``x`` (B, H, W, …) with ``weight`` (…, K, K), with zeros outside the map.

    The result at (r, c) is Σ_{u,v} weight[u, v] · x[r+u−k, c+v−k] with k = ⌊K/2⌋.
    """
    size, (height, width) = weight.shape[-1], x.shape[1:3]
    padded = F.pad(x, (0, 0) * (x.ndim - 3) + (size // 2,) * 4)
    out = torch.zeros_like(x)
    for u in range(size):
        for v in range(size):
            out = out + weight[..., u, v] * padded[:, u : u + height, v : v + width]
    return out


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution, same size, on a channels-last map (B, H, W, C).

    The permuted input already is a ``channels_last`` tensor, and the convolution returns that format, so neither
    permutation copies.
    """

    def __init__(self, dim: int, *, kernel_size: int = 3, bias: bool = True) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def reference(self, x: Tensor) -> Tensor:
        """Convolve by the definition."""
        out = shifted_sum(x, self.weight[:, 0])
        return out if self.bias is None else out + self.bias


class MapBatchNorm2d(nn.BatchNorm2d):
    """Batch norm on a map (B, H, W, C); neither permutation copies."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Pointwise(nn.Linear):
    """Linear map of each token of a map (B, H, W, C); on a CPU as a 1×1 convolution, as in VMINet's official code.

    On a CPU, the convolution goes to oneDNN and the linear map to MKL: VMINet-XS at 512 took 58 ms instead of 74 (two
    threads, AMD EPYC). Weights and results are those of the linear map.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


def conv_bn(conv: MapConv2d | DepthwiseConv2d) -> nn.Sequential:
    """Follow a convolution on a map (B, H, W, C) with a batch norm."""
    return nn.Sequential(OrderedDict(conv=conv, bn=MapBatchNorm2d(conv.out_channels)))


def conv_norm_act(conv: nn.Conv2d, *, norm: bool = True, act: bool = True) -> nn.Sequential:
    """Follow a convolution on (B, C, H, W) with an optional batch norm and an optional ReLU."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm:
        layers["norm"] = nn.BatchNorm2d(conv.out_channels)
    if act:
        layers["act"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)
