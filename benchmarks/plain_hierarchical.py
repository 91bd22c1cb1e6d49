"""SEMA and MILA written the way research code usually is: the baseline that our own forms must not fall behind.

Tokens are (B, N, C); every convolution goes through a channels-first copy and back; windows are padded, masked,
copied out and copied back; softmax attention is explicit; MILA's rotation multiplies complex numbers. Nothing here is
slow on purpose and nothing is tuned. The modules take the state dicts of ``sema_*`` and ``mila_*`` and give the same
logits (``tests/sema/test_plain.py``).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW_SIZE = 7
HEAD_DIM = 32


class ConvLayer(nn.Module):
    def __init__(
        self, in_channels, out_channels, kernel_size=3, stride=1, groups=1, bias=False, norm=True, act=True
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.act = nn.ReLU() if act else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.act is not None:
            x = self.act(x)
        return x


class Stem(nn.Module):
    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(in_chans, dim // 2, stride=2)
        self.conv2 = nn.Sequential(ConvLayer(dim // 2, dim // 2), ConvLayer(dim // 2, dim // 2, act=False))
        self.conv3 = nn.Sequential(
            ConvLayer(dim // 2, dim * 4, stride=2), ConvLayer(dim * 4, dim, kernel_size=1, act=False)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        x = self.conv1(x)
        x = self.conv2(x) + x
        x = self.conv3(x)
        height, width = x.shape[-2:]
        return x.flatten(2).transpose(1, 2), height, width


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        wide = dim * 8
        self.conv = nn.Sequential(
            ConvLayer(dim, wide, kernel_size=1, bias=True, norm=False),
            ConvLayer(wide, wide, stride=2, groups=wide, bias=True, norm=False),
            ConvLayer(wide, dim * 2, kernel_size=1, bias=True, act=False),
        )

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        batch, _, channels = x.shape
        x = self.conv(x.reshape(batch, height, width, channels).permute(0, 3, 1, 2))
        return x.flatten(2).transpose(1, 2), *x.shape[-2:]


def depthwise(conv: nn.Conv2d, x: Tensor, height: int, width: int) -> Tensor:
    """Turn tokens into a channels-first image, convolve it, and turn it back."""
    batch, _, channels = x.shape
    image = x.transpose(1, 2).reshape(batch, channels, height, width)
    return conv(image).flatten(2).transpose(1, 2)


class MilaAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = dim // HEAD_DIM
        self.qk = nn.Linear(dim, dim * 2)
        self.elu = nn.ELU()
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.tables: dict[tuple[int, int], Tensor] = {}

    def rotate(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, channels = x.shape
        if (height, width) not in self.tables:
            steps = channels // 4
            theta = 1 / (10000 ** (torch.arange(steps) / steps))
            rows = torch.arange(height)[:, None, None] * theta
            columns = torch.arange(width)[None, :, None] * theta
            angles = torch.cat((rows.expand(height, width, -1), columns.expand(height, width, -1)), dim=-1)
            self.tables[height, width] = torch.polar(torch.ones_like(angles), angles)
        pairs = torch.view_as_complex(x.reshape(batch, height, width, -1, 2))
        return torch.view_as_real(self.tables[height, width] * pairs).flatten(-2).reshape(batch, tokens, channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, channels = x.shape
        heads = (batch, tokens, self.num_heads, channels // self.num_heads)
        qk = self.qk(x).reshape(batch, tokens, 2, channels).permute(2, 0, 1, 3)
        q, k, v = qk[0], qk[1], x
        q, k = self.elu(q) + 1.0, self.elu(k) + 1.0
        q_rope = self.rotate(q, height, width).reshape(heads).permute(0, 2, 1, 3)
        k_rope = self.rotate(k, height, width).reshape(heads).permute(0, 2, 1, 3)
        q, k, v = (t.reshape(heads).permute(0, 2, 1, 3) for t in (q, k, v))
        z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + 1e-6)
        kv = (k_rope.transpose(-2, -1) * (tokens**-0.5)) @ (v * (tokens**-0.5))
        out = q_rope @ kv * z
        out = out.transpose(1, 2).reshape(batch, tokens, channels)
        v = v.transpose(1, 2).reshape(batch, tokens, channels)
        return out + depthwise(self.lepe, v, height, width)


class SemaAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads = dim // HEAD_DIM
        self.scale = HEAD_DIM**-0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        batch, tokens, channels = x.shape
        w = WINDOW_SIZE
        qkv = self.qkv(x)
        v = qkv[..., 2 * channels :]
        pad_bottom, pad_right = -height % w, -width % w
        full_height, full_width = height + pad_bottom, width + pad_right
        image = F.pad(qkv.view(batch, height, width, 3 * channels), (0, 0, 0, pad_right, 0, pad_bottom))
        windows = image.view(batch, full_height // w, w, full_width // w, w, 3 * channels)
        windows = windows.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, 3, self.num_heads, HEAD_DIM)
        query, key, value = windows.permute(2, 0, 3, 1, 4)
        scores = query * self.scale @ key.transpose(-2, -1)
        if pad_bottom or pad_right:
            real = F.pad(torch.ones(height, width, dtype=torch.bool, device=x.device), (0, pad_right, 0, pad_bottom))
            real = real.view(full_height // w, w, full_width // w, w).permute(0, 2, 1, 3).reshape(-1, 1, 1, w * w)
            scores = scores.masked_fill(~real.repeat(batch, 1, 1, 1), float("-inf"))
        out = scores.softmax(dim=-1) @ value
        out = out.transpose(1, 2).reshape(batch, full_height // w, full_width // w, w, w, channels)
        out = out.permute(0, 1, 3, 2, 4, 5).reshape(batch, full_height, full_width, channels)
        out = out[:, :height, :width].reshape(batch, tokens, channels)
        return out + v.mean(dim=1, keepdim=True) + depthwise(self.lepe, v, height, width)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * 4)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.cpe1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, dim)
        self.act_proj = nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.act = nn.SiLU()
        self.attn = attention(dim)
        self.out_proj = nn.Linear(dim, dim)
        self.cpe2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = x + depthwise(self.cpe1, x, height, width)
        shortcut = x
        x = self.norm1(x)
        gate = self.act(self.act_proj(x))
        x = self.act(depthwise(self.dwc, self.in_proj(x), height, width))
        x = self.attn(x, height, width)
        x = shortcut + self.out_proj(x * gate)
        x = x + depthwise(self.cpe2, x, height, width)
        return x + self.mlp(self.norm2(x))


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, attention: type[nn.Module], *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, attention) for _ in range(depth))
        self.downsample = None if last else PatchMerging(dim)

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        for block in self.blocks:
            x = block(x, height, width)
        return (x, height, width) if self.downsample is None else self.downsample(x, height, width)


class PlainHierarchical(nn.Module):
    """MILA's macro design with one of the two attentions above."""

    def __init__(self, attention: type[nn.Module], *, dims=(64, 128, 256, 512), depths=(2, 4, 8, 4)) -> None:
        super().__init__()
        self.patch_embed = Stem(3, dims[0])
        self.layers = nn.ModuleList(
            Stage(dim, depth, attention, last=dim == dims[-1]) for dim, depth in zip(dims, depths, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.avgpool = nn.AdaptiveAvgPool1d(1)
        self.head = nn.Linear(dims[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        x, height, width = self.patch_embed(x)
        for layer in self.layers:
            x, height, width = layer(x, height, width)
        x = self.avgpool(self.norm(x).transpose(1, 2)).flatten(1)
        return self.head(x)


_SMALL = {"depths": (3, 6, 21, 6)}
_BASE = {"dims": (96, 192, 384, 768), **_SMALL}

PLAIN: dict[str, Callable[[], nn.Module]] = {
    "sema_tiny": lambda: PlainHierarchical(SemaAttention),
    "sema_small": lambda: PlainHierarchical(SemaAttention, **_SMALL),
    "sema_base": lambda: PlainHierarchical(SemaAttention, **_BASE),
    "mila_tiny": lambda: PlainHierarchical(MilaAttention),
    "mila_small": lambda: PlainHierarchical(MilaAttention, **_SMALL),
    "mila_base": lambda: PlainHierarchical(MilaAttention, **_BASE),
}
