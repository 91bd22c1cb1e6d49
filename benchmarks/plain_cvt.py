"""CvT as its equations are usually written: tokens turned into channels-first maps and back around every projection.

The modules take the state dicts of ``cvt_13`` and ``sima_cvt_13`` and give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvProjection(nn.Module):
    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).flatten(2).transpose(1, 2)


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, sima: bool) -> None:
        super().__init__()
        self.heads, self.sima = heads, sima
        self.conv_proj_q = ConvProjection(dim, 1)
        self.conv_proj_k, self.conv_proj_v = ConvProjection(dim, 2), ConvProjection(dim, 2)
        self.proj_q, self.proj_k, self.proj_v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, dim = x.shape
        token, x = x.split([tokens - height * width, height * width], dim=1)
        x = x.transpose(1, 2).reshape(batch, dim, height, width)
        parts = []
        for name in "qkv":
            part = torch.cat((token, getattr(self, f"conv_proj_{name}")(x)), dim=1)
            part = getattr(self, f"proj_{name}")(part)
            parts.append(part.reshape(batch, -1, self.heads, dim // self.heads).transpose(1, 2))
        q, k, v = parts
        if self.sima:
            q, k = F.normalize(q, p=1.0, dim=-2), F.normalize(k, p=1.0, dim=-2)
            x = (q @ k.transpose(-2, -1)) @ v if q.shape[-2] < q.shape[-1] else q @ (k.transpose(-2, -1) @ v)
        else:
            x = torch.einsum("bhlk,bhtk->bhlt", q, k) * dim**-0.5
            x = torch.einsum("bhlt,bhtv->bhlv", x.softmax(dim=-1), v)
        return x.transpose(1, 2).reshape(batch, tokens, dim)


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, sima: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PlainAttention(dim, heads, sima)
        self.proj = nn.Linear(dim, dim)
        self.mlp = PlainMlp(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.proj(self.attn(self.norm1(x), height, width))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, before: int, dim: int, size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(before, dim, size, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2], x.shape[3]


class PlainStage(nn.Module):
    def __init__(self, embed: PatchEmbed, dim: int, depth: int, heads: int, sima: bool, last: bool) -> None:
        super().__init__()
        self.patch_embed = embed
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, sima) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if last else None

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self.patch_embed(x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x, height, width)
        return x if self.cls_token is not None else x.transpose(1, 2).reshape(x.shape[0], -1, height, width)


class PlainCvT(nn.Module):
    def __init__(self, sima: bool) -> None:
        super().__init__()
        self.stage0 = PlainStage(PatchEmbed(3, 64, 7, 4, 2), 64, 1, 1, sima, False)
        self.stage1 = PlainStage(PatchEmbed(64, 192, 3, 2, 1), 192, 2, 3, sima, False)
        self.stage2 = PlainStage(PatchEmbed(192, 384, 3, 2, 1), 384, 10, 6, sima, True)
        self.norm = nn.LayerNorm(384)
        self.head = nn.Linear(384, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stage2(self.stage1(self.stage0(x)))[:, 0]))


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "cvt_13": lambda: PlainCvT(False),
    "sima_cvt_13": lambda: PlainCvT(True),
}
