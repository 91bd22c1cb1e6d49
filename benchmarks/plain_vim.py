"""Vim as its equations are usually written: (B, D, L) sequences, the backward direction on a flipped copy.

The scan is the plain one of ``plain_vmamba``; the modules take the state dicts of ``vim_*`` and give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from plain_vmamba import scan
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class PlainMixer(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        inner, self.rank = 2 * dim, -(-dim // 16)
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        for suffix in ("", "_b"):
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, 4, padding=3, groups=inner))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.rank + 32, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(self.rank, inner))
            self.register_parameter(f"A{suffix}_log", nn.Parameter(torch.zeros(inner, 16)))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def direction(self, x: Tensor, z: Tensor, suffix: str) -> Tensor:
        conv, x_proj, dt_proj = (getattr(self, name + suffix) for name in ("conv1d", "x_proj", "dt_proj"))
        u = F.silu(conv(x)[..., : x.shape[-1]])
        low, b, c = x_proj(u.transpose(1, 2)).split([self.rank, 16, 16], dim=-1)
        delta = F.softplus(dt_proj(low)).transpose(1, 2)
        a = -torch.exp(getattr(self, f"A{suffix}_log"))
        b, c = (part.transpose(1, 2)[:, None] for part in (b, c))
        y = scan(u[:, None], delta[:, None], a[None], b, c, getattr(self, f"D{suffix}")[None])
        return y[:, 0] * F.silu(z)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        y = self.direction(x, z, "") + self.direction(x.flip(-1), z.flip(-1), "_b").flip(-1)
        return self.out_proj((y / 2).transpose(1, 2))


class PlainBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mixer = PlainMixer(dim)
        self.norm = RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class PlainVim(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 16, 16)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 197, dim))
        self.layers = nn.Sequential(*(PlainBlock(dim) for _ in range(24)))
        self.norm_f = RMSNorm(dim)
        self.head = nn.Linear(dim, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x)
        grid, x = x.shape[2:], x.flatten(2).transpose(1, 2)
        middle = x.shape[1] // 2
        x = torch.cat((x[:, :middle], self.cls_token.expand(x.shape[0], -1, -1), x[:, middle:]), dim=1)
        positions = self.pos_embed
        if tuple(grid) != (14, 14):
            of_class = positions[:, 98:99]
            base = torch.cat((positions[:, :98], positions[:, 99:]), dim=1).transpose(1, 2).unflatten(2, (14, 14))
            live = F.interpolate(base, size=tuple(grid), mode="bicubic").flatten(2).transpose(1, 2)
            positions = torch.cat((live[:, :middle], of_class, live[:, middle:]), dim=1)
        x = self.layers(x + positions)
        return self.head(self.norm_f(x)[:, middle])


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "vim_tiny": lambda: PlainVim(192),
    "vim_small": lambda: PlainVim(384),
    "vim_base": lambda: PlainVim(768),
}
