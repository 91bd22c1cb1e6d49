"""Swin, FLatten-Swin and InLine-Swin as their equations are usually written: maps padded to whole windows, masks and
biases gathered at every pass, windows copied out and back, explicit softmax.

The modules take the state dicts of ``*swin_*`` and give the same logits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW = 7


class PlainWindows(nn.Module):
    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(WINDOW), torch.arange(WINDOW), indexing="ij")).flatten(1)
        offset = place[:, :, None] - place[:, None, :] + WINDOW - 1
        self.register_buffer("index", offset[0] * (2 * WINDOW - 1) + offset[1], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        shift = self.shift if min(height, width) > WINDOW else 0
        label = torch.zeros(1, height, width, 1)
        if shift:
            x = torch.roll(x, (-shift, -shift), dims=(1, 2))
            label[:, height - shift :] += 1
            label[:, :, width - shift :] += 2
        bottom, right = -height % WINDOW, -width % WINDOW
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        label = F.pad(label, (0, 0, 0, right, 0, bottom), value=-1)
        windows, labels = partition(x), partition(label).squeeze(-1)
        tokens = windows.shape[1]
        qkv = self.qkv(windows).reshape(-1, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        scores = (q * (dim // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.index.view(-1)].view(tokens, tokens, -1).permute(2, 0, 1)
        scores = scores + bias.contiguous().unsqueeze(0)
        if shift or bottom or right:
            apart = labels[:, None, :] != labels[:, :, None]
            mask = torch.zeros(apart.shape).masked_fill(apart, -1e9).unsqueeze(1)
            scores = scores.view(batch, -1, self.heads, tokens, tokens) + mask
            scores = scores.view(-1, self.heads, tokens, tokens)
        mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(-1, tokens, dim)
        x = merge(mixed, height + bottom, width + right)[:, :height, :width]
        return torch.roll(x, (shift, shift), dims=(1, 2)) if shift else x


def partition(x: Tensor) -> Tensor:
    batch, height, width, dim = x.shape
    x = x.view(batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, dim)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, dim)


def merge(windows: Tensor, height: int, width: int) -> Tensor:
    x = windows.view(-1, height // WINDOW, width // WINDOW, WINDOW, WINDOW, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, windows.shape[-1])


class PlainFocused(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads, self.side = heads, side
        self.qkv = nn.Linear(dim, 3 * dim)
        self.dwc = nn.Conv2d(dim // heads, dim // heads, 5, padding=2, groups=dim // heads)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, side * side, dim))

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        x = x.reshape(batch, -1, dim)
        q, k, v = self.qkv(x).reshape(batch, -1, 3, dim).permute(2, 0, 1, 3)
        positions = self.positional_encoding
        if (height, width) != (self.side, self.side):
            base = positions.transpose(1, 2).unflatten(2, (self.side, self.side))
            positions = F.interpolate(base, size=(height, width), mode="bicubic").flatten(2).transpose(1, 2)
        k = k + positions
        scale = F.softplus(self.scale)
        q, k = (F.relu(q) + 1e-6) / scale, (F.relu(k) + 1e-6) / scale
        q_norm, k_norm = q.norm(dim=-1, keepdim=True), k.norm(dim=-1, keepdim=True)
        q, k = q**3, k**3
        q = q / q.norm(dim=-1, keepdim=True) * q_norm
        k = k / k.norm(dim=-1, keepdim=True) * k_norm
        q, k, v = (part.reshape(batch, -1, self.heads, dim // self.heads).permute(0, 2, 1, 3) for part in (q, k, v))
        tokens = height * width
        z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        summary = (k.transpose(-2, -1) * tokens**-0.5) @ (v * tokens**-0.5)
        out = (q @ summary * z).transpose(1, 2).reshape(batch, tokens, dim)
        local = self.dwc(v.reshape(batch * self.heads, height, width, -1).permute(0, 3, 1, 2))
        out = out + local.reshape(batch, dim, tokens).permute(0, 2, 1)
        return out.view(batch, height, width, dim)


class PlainInLine(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=heads), nn.GELU(), nn.Conv1d(dim, 9 * dim, 1, groups=heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        x = x.reshape(batch, -1, dim)
        tokens, scale = x.shape[1], (dim // self.heads) ** -0.5
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        kernels = self.residual(x.mean(dim=1).unsqueeze(-1)).reshape(batch * dim, 1, 3, 3)
        summary = (k.transpose(-2, -1) * (scale / tokens) ** 0.5) @ (v * (scale / tokens) ** 0.5)
        share = 1 - q @ k.mean(dim=2, keepdim=True).transpose(-2, -1) * scale
        out = (q @ summary + share * v.mean(dim=2, keepdim=True)).transpose(1, 2).reshape(batch, tokens, dim)
        maps = v.transpose(1, 2).reshape(batch, height, width, dim).permute(0, 3, 1, 2)
        local = F.conv2d(maps.reshape(1, batch * dim, height, width), kernels, padding=1, groups=batch * dim)
        return (out + local.reshape(batch, dim, tokens).permute(0, 2, 1)).view(batch, height, width, dim)


class PlainMlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.proj = nn.Linear(dim, dim)
        self.mlp = PlainMlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.proj(self.attn(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat((x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]), dim=-1)
        return self.reduction(self.norm(x))


class PlainStage(nn.Module):
    def __init__(self, dim: int, blocks: list[PlainBlock], last: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)))
        return self.norm(x.flatten(2).transpose(1, 2)).view(x.shape[0], x.shape[2], x.shape[3], -1)


class PlainSwin(nn.Module):
    def __init__(self, dim: int, depths: tuple[int, ...], heads: tuple[int, ...], kinds: str = "SSSS") -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(dim)
        self.layers = nn.ModuleList()
        for index, (depth, count, kind) in enumerate(zip(depths, heads, kinds, strict=True)):
            width = dim * 2**index
            blocks = [PlainBlock(width, attention(kind, width, count, i, 56 // 2**index)) for i in range(depth)]
            self.layers.append(PlainStage(width, blocks, index == 3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x).mean((1, 2)))


def attention(kind: str, dim: int, heads: int, index: int, side: int) -> nn.Module:
    if kind == "L":
        return PlainFocused(dim, heads, side)
    return PlainInLine(dim, heads) if kind == "I" else PlainWindows(dim, heads, WINDOW // 2 if index % 2 else 0)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "swin_tiny": lambda: PlainSwin(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "swin_small": lambda: PlainSwin(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "swin_base": lambda: PlainSwin(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "flatten_swin_tiny": lambda: PlainSwin(96, (2, 2, 6, 2), (3, 6, 12, 24), "LLSS"),
    "inline_swin_tiny": lambda: PlainSwin(96, (2, 2, 6, 2), (3, 6, 12, 24), "IIIS"),
}
