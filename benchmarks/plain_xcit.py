"""XCiT and SimA in XCiT's form as their equations are usually written: (B, N, C) tokens, positions made at every pass.

The modules take the state dicts of ``sima_*_p16`` and ``xcit_*_p16`` and give the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from plain_swin import PlainMlp
from plain_vit import sima_attention
from torch import Tensor, nn


class FourierPositions(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(64, dim, 1)

    def forward(self, height: int, width: int) -> Tensor:
        rows = torch.arange(1, height + 1).view(-1, 1).expand(height, width) / (height + 1e-6) * 2 * math.pi
        columns = torch.arange(1, width + 1).expand(height, width) / (width + 1e-6) * 2 * math.pi
        period = 10000 ** (2 * (torch.arange(32) // 2) / 32)
        waves = []
        for position in (rows, columns):
            angle = position[..., None] / period
            waves.append(torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2))
        return self.token_projection(torch.cat(waves, dim=-1).permute(2, 0, 1)[None])


def cross_covariance(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    q, k, v = (part.transpose(-2, -1) for part in (q, k, v))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    return ((q @ k.transpose(-2, -1) * temperature).softmax(dim=-1) @ v).transpose(-2, -1)


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, xca: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1)) if xca else None

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        x = sima_attention(q, k, v) if self.temperature is None else cross_covariance(q, k, v, self.temperature)
        return x.transpose(1, 2).reshape(batch, tokens, dim)


class LocalPatchInteraction(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x.transpose(1, 2).reshape(x.shape[0], -1, height, width)
        return self.conv2(self.bn(F.gelu(self.conv1(x)))).flatten(2).transpose(1, 2)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, xca: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = PlainAttention(dim, heads, xca)
        self.proj = nn.Linear(dim, dim)
        self.mlp = PlainMlp(dim)
        self.local_mp = LocalPatchInteraction(dim)
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.ones(dim)) for _ in range(3))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + self.gamma1 * self.proj(self.attn(self.norm1(x)))
        x = x + self.gamma3 * self.local_mp(self.norm3(x), height, width)
        return x + self.gamma2 * self.mlp(self.norm2(x))


class ClassAttention(nn.Module):
    def __init__(self, dim: int, heads: int, xca: bool) -> None:
        super().__init__()
        self.heads, self.xca = heads, xca
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        if self.xca:
            weights = ((q[:, :, :1] * k).sum(-1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        else:
            q, k = F.normalize(q, p=1.0, dim=-2, eps=1e-6), F.normalize(k, p=1.0, dim=-2, eps=1e-6)
            weights = (q[:, :, :1] * k).sum(-1)
        token = self.proj((weights.unsqueeze(2) @ v).transpose(1, 2).reshape(batch, 1, dim))
        return torch.cat((token, x[:, 1:]), dim=1)


class PlainClassBlock(nn.Module):
    def __init__(self, dim: int, heads: int, xca: bool, norm_all: bool) -> None:
        super().__init__()
        self.norm_all = norm_all
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, heads, xca)
        self.mlp = PlainMlp(dim)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = self.norm2(x) if self.norm_all else torch.cat((self.norm2(x[:, :1]), x[:, 1:]), dim=1)
        return x + torch.cat((self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]), dim=1)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((3, dim // 8), (dim // 8, dim // 4), (dim // 4, dim // 2), (dim // 2, dim)):
            conv = nn.Conv2d(before, after, 3, 2, 1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(after)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class PlainXCiT(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, *, xca: bool = False, norm_all: bool = True) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.pos_embeder = FourierPositions(dim)
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, xca) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_attn_blocks = nn.ModuleList(PlainClassBlock(dim, heads, xca, norm_all) for _ in range(2))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        height, width = x.shape[2:]
        x = (x + self.pos_embeder(height, width)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, height, width)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.cls_attn_blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "sima_nano_12_p16": lambda: PlainXCiT(128, 12, 4, norm_all=False),
    "sima_tiny_12_p16": lambda: PlainXCiT(192, 12, 4),
    "sima_small_12_p16": lambda: PlainXCiT(384, 12, 8),
    "sima_tiny_24_p16": lambda: PlainXCiT(192, 24, 4),
    "sima_small_24_p16": lambda: PlainXCiT(384, 24, 8),
    "sima_medium_24_p16": lambda: PlainXCiT(512, 24, 8),
    "xcit_small_12_p16": lambda: PlainXCiT(384, 12, 8, xca=True),
}
