"""Inference forms of attentions: constants folded into the projections, work cut into pieces that stay in cache.

Legend: B batch, H W token grid, C channels, h heads, d = C / h, w window size, t tokens of one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from sema.attention.sema import SemaAttention, pool_tokens
from sema.attention.vim import VimAttention
from sema.attention.vmamba import VmambaAttention
from sema.attention.window import WindowAttention, shift_of
from sema.inference.kit import Kit
from sema.layers.windows import Region, window_regions, window_slots
from sema.native.selective_scan import selective_scan_native
from sema.native.window_attention import attend_in_windows_native

#: Queries, keys and scores that are made at once.
_HELD_BYTES = 2 << 20


class SemaForm(nn.Module):
    """SEMA on a CPU: (B, H, W, C) → (B, H, W, C).

    Values are made for the whole map, because their mean and the convolution of LePE need all of them; queries and
    keys for a few rows of windows at a time. A kernel in C++ attends in them, adds the mean and multiplies by the gate
    of the block in one pass. Where it cannot be built torch's operators do it: the weights of a window sum to one, so
    the mean is added to the values where they are copied into windows, and costs nothing there.
    """

    def __init__(self, attention: SemaAttention, kit: Kit) -> None:
        super().__init__()
        dim = attention.dim
        self.num_heads, self.window_size, self.pooling = attention.num_heads, attention.window_size, attention.pooling
        self.qk = kit.linear(attention.qkv, scale=_of_queries(attention, kit), outputs=slice(0, 2 * dim))
        self.v = kit.linear(attention.qkv, outputs=slice(2 * dim, 3 * dim))
        self.lepe = None if attention.lepe is None else kit.conv(attention.lepe)
        self._attend = attend_in_windows_native if kit.has_native("window_attention") else attend_in_windows_torch

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return the mixed tokens, times ``gate`` of their shape."""
        v = self.v(x)
        pooled = None if self.pooling == "none" else pool_tokens(v, self.pooling)
        out = torch.zeros_like(v) if self.lepe is None else self.lepe(v)
        for piece in _pieces(x, self.window_size):
            self._attend(
                self.qk(x[piece]), v[piece], onto=out[piece], num_heads=self.num_heads, window_size=self.window_size,
                plus=None if pooled is None else pooled[piece[0]], times=None if gate is None else gate[piece],
            )  # fmt: skip
        return out


def _pieces(x: Tensor, size: int) -> Iterator[tuple[slice, slice]]:
    """Cut (B, H, W, C) into whole images, or into rows of windows of one image, whose work stays in cache."""
    batch, height, width, dim = x.shape
    held = 2 * dim * x.itemsize  # of one token: its query and its key
    images = _HELD_BYTES // (held * height * width)
    if images:
        yield from ((slice(start, start + images), slice(None)) for start in range(0, batch, images))
        return
    rows = max(1, _HELD_BYTES // (held * width * size)) * size
    yield from (
        (slice(image, image + 1), slice(top, top + rows)) for image in range(batch) for top in range(0, height, rows)
    )


def attend_in_windows_torch(
    qk: Tensor, v: Tensor, *, onto: Tensor, num_heads: int, window_size: int, plus: Tensor | None, times: Tensor | None
) -> None:
    """Do what ``attend_in_windows_native`` does, by torch's operators."""
    for region in window_regions((v.shape[1], v.shape[2]), window_size):
        q, k = (_windows(part, region, num_heads) for part in qk.chunk(2, dim=-1))
        values = _windows(v, region, num_heads, plus=plus)
        attended = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1), values)
        slots = window_slots(onto, region, num_heads)
        slots.add_(attended.view(slots.shape))
    if times is not None:
        onto.mul_(times)


def _windows(x: Tensor, region: Region, heads: int, *, plus: Tensor | None = None) -> Tensor:
    """Copy a region of ``x`` (B, H, W, C), plus a vector (B, 1, 1, C): (B·windows·h, t, d)."""
    view = window_slots(x, region, heads)  # (B, rows, columns, h, a, b, d)
    copied = x.new_empty(view.shape)
    if plus is None:
        copied.copy_(view)
    else:
        plus = plus.expand(-1, region.height, region.width, -1).unflatten(-1, (heads, -1))  # (B, a, b, h, d)
        torch.add(view, plus.permute(0, 3, 1, 2, 4)[:, None, None], out=copied)
    return copied.view(-1, region.tokens, view.shape[-1])


def _of_queries(attention: SemaAttention | WindowAttention, kit: Kit) -> Tensor:
    """Return what q, k and v are multiplied by: the scale of the scores, and 1."""
    scale = torch.ones(3 * attention.dim, dtype=torch.float64, device=kit.device)
    scale[: attention.dim] = attention.scale
    return scale


class WindowForm(nn.Module):
    """Window attention on a CPU by the kernel in C++, which reads the rolled map in place: (B, H, W, C) → the same."""

    def __init__(self, attention: WindowAttention, kit: Kit) -> None:
        super().__init__()
        dim = attention.dim
        self.num_heads, self.window_size = attention.num_heads, attention.window_size
        self.shift_size = attention.shift_size
        self.qk = kit.linear(attention.qkv, scale=_of_queries(attention, kit), outputs=slice(0, 2 * dim))
        self.v = kit.linear(attention.qkv, outputs=slice(2 * dim, 3 * dim))
        # The bias stays in float32, whatever the form is turned into.
        whole = attention._gather_biases((self.window_size, self.window_size)) if attention.has_bias else (None,)
        self._bias = None if whole[0] is None else whole[0].detach().float()

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        out = torch.zeros_like(v)
        attend_in_windows_native(
            self.qk(x), v, onto=out, num_heads=self.num_heads, window_size=self.window_size, bias=self._bias,
            shift=shift_of((x.shape[1], x.shape[2]), self.shift_size, self.window_size),
        )  # fmt: skip
        return out


def scaled_window_attention(attention: WindowAttention, kit: Kit) -> WindowAttention:
    """Return window attention with its scale folded into the queries."""
    attention.qkv = kit.linear(attention.qkv, scale=_of_queries(attention, kit))  # type: ignore[assignment]
    attention.scale = 1.0
    return attention


_Scanning = TypeVar("_Scanning", VmambaAttention, VimAttention)


def with_fast_scan(attention: _Scanning, kit: Kit) -> _Scanning:
    """Return the attention with the scan in C++, where that can be built and no other scan was asked for by name."""
    if attention.scan == "torch" and kit.has_native("selective_scan"):
        attention._scan = selective_scan_native
    return attention
