"""DeiT as its equations are usually written: (B, N, C) tokens, explicit softmax over an N×N matrix.

The modules take the state dicts of ``deit_*`` and ``sima_deit_*`` and give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def sima_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k = F.normalize(q, p=1.0, dim=-2), F.normalize(k, p=1.0, dim=-2)
    if q.shape[-2] < q.shape[-1]:
        return (q @ k.transpose(-2, -1)) @ v
    return q @ (k.transpose(-2, -1) @ v)


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.qkv = nn.Linear(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.attend(*qkv).transpose(1, 2).reshape(batch, tokens, dim)


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = PlainAttention(dim, heads, attend)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.attn(self.norm1(x)))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PlainViT(nn.Module):
    def __init__(
        self, dim: int, heads: int, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = softmax_attention
    ) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 16, 16)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, dim))
        self.blocks = nn.Sequential(*(PlainBlock(dim, heads, attend) for _ in range(12)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x)
        grid, x = x.shape[2:], x.flatten(2).transpose(1, 2)
        positions = self.pos_embed
        if tuple(grid) != (14, 14):
            base = positions[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
            live = F.interpolate(base, size=tuple(grid), mode="bicubic").flatten(2).transpose(1, 2)
            positions = torch.cat((positions[:, :1], live), dim=1)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + positions
        return self.head(self.norm(self.blocks(x))[:, 0])


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "deit_tiny": lambda: PlainViT(192, 3),
    "deit_small": lambda: PlainViT(384, 6),
    "deit_base": lambda: PlainViT(768, 12),
    "sima_deit_tiny": lambda: PlainViT(192, 3, sima_attention),
    "sima_deit_small": lambda: PlainViT(384, 6, sima_attention),
    "sima_deit_base": lambda: PlainViT(768, 12, sima_attention),
}
