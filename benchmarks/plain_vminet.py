"""VMINet as its equations are usually written: channels-first maps, 1×1 convolutions, weights for one size.

The modules take the state dicts of ``vminet_*`` and give the same logits; at another size the weights of the token sums
are interpolated at every forward pass.
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
    def __init__(self, dim: int, expansion: int, side: int) -> None:
        super().__init__()
        self.side = side
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
        total = F.linear(x.flatten(2), weight).unsqueeze(2)
        x = self.stack[0] * total.expand_as(x) + self.stack[1] * x
        return pointwise(F.relu6(x), self.g)


def pointwise(x: Tensor, linear: nn.Linear) -> Tensor:
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, expansion: int, side: int) -> None:
        super().__init__()
        self.dwconv = ConvBn(nn.Conv2d(dim, dim, 7, padding=3, groups=dim))
        self.attn = PlainAttention(dim, expansion, side)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.attn(self.dwconv(x)))


class PlainVMINet(nn.Module):
    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBn(nn.Conv2d(3, 32, 3, 2, 1)), nn.ReLU6())
        self.stages = nn.ModuleList()
        channels = 32
        for index, depth in enumerate((2, 2, 18, 2)):
            width = dim * 2**index
            blocks = [PlainBlock(width, expansion, 56 // 2**index) for _ in range(depth)]
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
}
