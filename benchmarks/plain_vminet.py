"""VMINet as its equations are usually written: channels-first maps, 1×1 convolutions, weights for one size.

The modules take the state dicts of ``vminet_*`` and ``vminet2_*`` and give the same logits. At another size, every
forward pass interpolates the weights of the token sums and makes the masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBn(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class PlainAttention(nn.Module):
    def __init__(self, dim: int, expansion: int, side: int, masked: bool) -> None:
        super().__init__()
        self.side, self.masked = side, masked
        self.f1, self.f2 = nn.Linear(dim, expansion * dim), nn.Linear(dim, expansion * dim)
        self.sum = nn.Linear(side * side, 1, bias=False)
        self.stack = nn.Parameter(torch.ones(2))
        self.g = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2, height, width = pointwise(x, self.f1), pointwise(x, self.f2), x.shape[2], x.shape[3]
        x = F.relu6(x1) * x2
        weight = self.sum.weight
        if (height, width) != (self.side, self.side):
            weight = F.interpolate(weight.view(1, 1, self.side, self.side), size=(height, width), mode="bilinear")
            weight = weight.reshape(1, -1) * (self.side**2 / (height * width))
        tokens = x.flatten(2).transpose(1, 2)
        if self.masked and (height, width) == (self.side, self.side):
            tokens = torch.tril(tokens)
        elif self.masked:
            index = torch.arange(self.side**2, dtype=x.dtype, device=x.device).view(1, 1, self.side, self.side)
            index = F.interpolate(index, size=(height, width), mode="nearest-exact").view(-1, 1)
            tokens = tokens * (index >= torch.arange(x.shape[1], device=x.device))
        total = F.linear(tokens.transpose(1, 2), weight).unsqueeze(2)
        x = self.stack[0] * total.expand_as(x) + self.stack[1] * x
        return pointwise(F.relu6(x), self.g)


def pointwise(x: Tensor, linear: nn.Linear) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, expansion: int, side: int, version: int) -> None:
        super().__init__()
        self.dwconv = ConvBn(nn.Conv2d(dim, dim, 7, padding=3, groups=dim))
        self.attn = PlainAttention(dim, expansion, side, version == 2)
        self.norm = nn.BatchNorm2d(dim) if version == 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.attn(self.dwconv(x)))


class PlainVMINet(nn.Module):
    def __init__(self, dim: int, expansion: int, version: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(nn.Conv2d(3, 32, 3, 2, 1)), nn.ReLU6())
        self.stages = nn.ModuleList()
        channels = 32
        for index, depth in enumerate((2, 2, 18, 2)):
            width = dim * 2**index
            blocks = [PlainBlock(width, expansion, 56 // 2**index, version) for _ in range(depth)]
            self.stages.append(nn.Sequential(ConvBn(nn.Conv2d(channels, width, 3, 2, 1)), *blocks))
            channels = width
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean((2, 3)))


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "vminet_ti": lambda: PlainVMINet(24, 2),
    "vminet_xs": lambda: PlainVMINet(48, 2),
    "vminet_s": lambda: PlainVMINet(48, 4),
    "vminet_b": lambda: PlainVMINet(96, 2),
    "vminet2_ti": lambda: PlainVMINet(24, 2, version=2),
    "vminet2_xs": lambda: PlainVMINet(48, 2, version=2),
    "vminet2_s": lambda: PlainVMINet(48, 4, version=2),
    "vminet2_b": lambda: PlainVMINet(96, 2, version=2),
}
