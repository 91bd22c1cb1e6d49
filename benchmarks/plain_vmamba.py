"""VMamba as its equations are usually written: channels-first maps, four unrolled copies of the tokens, one scan.

The scan follows our library's two-level scheme, written plainly, on (B, 4·D, L) sequences. A loop over L tokens, like
the authors' own fallback, would be a far slower baseline and make the comparison worthless.
The modules take the state dicts of ``vmamba_*`` and give the same logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Selective scan, (B, K, D, L) with b and c (B, K, N, L): chunks of √L tokens, then a carry over the chunks."""
    length = u.shape[-1]
    size = math.isqrt(length - 1) + 1
    chunks = -(-length // size)
    pad = chunks * size - length
    decay = torch.exp(F.pad(torch.einsum("bkdl,kdn->bkdnl", delta, a), (0, pad)))
    added = F.pad(torch.einsum("bkdl,bknl->bkdnl", delta * u, b), (0, pad))
    decay = decay.unflatten(-1, (chunks, size))
    added = added.unflatten(-1, (chunks, size))
    states, products = [added[..., 0]], [decay[..., 0]]
    for t in range(1, size):
        states.append(decay[..., t] * states[-1] + added[..., t])
        products.append(decay[..., t] * products[-1])
    h, p = torch.stack(states, dim=-1), torch.stack(products, dim=-1)
    carries = [torch.zeros_like(h[..., 0, 0])]
    for k in range(chunks - 1):
        carries.append(p[..., k, -1] * carries[-1] + h[..., k, -1])
    h = h + p * torch.stack(carries, dim=-1).unsqueeze(-1)
    h = h.flatten(-2)[..., :length]
    return torch.einsum("bkdnl,bknl->bkdl", h, c) + d[None, :, :, None] * u


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Linear2d(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


class PlainSS2D(nn.Module):
    def __init__(self, dim: int, ssm_ratio: int) -> None:
        super().__init__()
        inner, rank = dim * ssm_ratio, -(-dim // 16)
        self.rank = rank
        self.in_proj = Linear2d(dim, inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.x_proj_weight = nn.Parameter(torch.zeros(4, rank + 2, inner))
        self.dt_projs_weight = nn.Parameter(torch.zeros(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.zeros(4, inner))
        self.A_logs = nn.Parameter(torch.zeros(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = LayerNorm2d(inner)
        self.out_proj = Linear2d(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.conv2d(self.in_proj(x)))
        batch, inner, height, width = x.shape
        both = torch.stack((x.flatten(2), x.transpose(2, 3).flatten(2)), dim=1)
        xs = torch.cat((both, both.flip(-1)), dim=1)  # (B, 4, D, L)
        projected = torch.einsum("bkdl,kcd->bkcl", xs, self.x_proj_weight)
        low, b, c = projected.split([self.rank, 1, 1], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", low, self.dt_projs_weight)
        delta = F.softplus(delta + self.dt_projs_bias[None, :, :, None])
        a = -torch.exp(self.A_logs).view(4, inner, 1)
        ys = scan(xs, delta, a, b, c, self.Ds.view(4, inner))
        ys = ys[:, :2] + ys[:, 2:].flip(-1)
        y = ys[:, 0] + ys[:, 1].view(batch, inner, width, height).transpose(2, 3).flatten(2)
        return self.out_proj(self.out_norm(y.view(batch, inner, height, width)))


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = Linear2d(dim, 4 * dim)
        self.fc2 = Linear2d(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, ssm_ratio: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.op = PlainSS2D(dim, ssm_ratio)
        self.norm2 = LayerNorm2d(dim)
        self.mlp = PlainMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.op(self.norm(x))
        return x + self.mlp(self.norm2(x))


class PlainStage(nn.Module):
    def __init__(self, dim: int, depth: int, ssm_ratio: int, downsample: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(PlainBlock(dim, ssm_ratio) for _ in range(depth)))
        steps = [nn.Identity(), nn.Conv2d(dim, 2 * dim, 3, 2, 1), nn.Identity(), LayerNorm2d(2 * dim)]
        self.downsample = nn.Sequential(*(steps if downsample else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))


class PlainVMamba(nn.Module):
    def __init__(self, dim: int, depths: tuple[int, ...], ssm_ratio: int) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, dim // 2, 3, 2, 1),
            nn.Identity(),
            LayerNorm2d(dim // 2),
            nn.Identity(),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1),
            nn.Identity(),
            LayerNorm2d(dim),
        )
        self.layers = nn.Sequential(
            *(PlainStage(dim * 2**i, depth, ssm_ratio, i < len(depths) - 1) for i, depth in enumerate(depths))
        )
        last = dim * 2 ** (len(depths) - 1)
        self.classifier = nn.ModuleDict({"norm": LayerNorm2d(last), "head": nn.Linear(last, 1000)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.classifier["norm"](self.layers(self.patch_embed(x)))
        return self.classifier["head"](x.mean((2, 3)))


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "vmamba_tiny_s1l8": lambda: PlainVMamba(96, (2, 2, 8, 2), 1),
    "vmamba_small_s2l15": lambda: PlainVMamba(96, (2, 2, 15, 2), 2),
    "vmamba_base_s2l15": lambda: PlainVMamba(128, (2, 2, 15, 2), 2),
    "vmamba_small_s1l20": lambda: PlainVMamba(96, (2, 2, 20, 2), 1),
    "vmamba_base_s1l20": lambda: PlainVMamba(128, (2, 2, 20, 2), 1),
}
