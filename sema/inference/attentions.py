"""Inference forms of attentions: constants folded into the projections, work cut into pieces that stay in cache.

Legend: B batch, H W token grid, C channels, h heads, d = C / h, w window size, t tokens of one window.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sema.attention.sema import SemaAttention
from sema.attention.window import WindowAttention
from sema.inference.kit import Kit
from sema.layers.windows import Region, window_regions, window_slots

#: Queries, keys and scores that are made at once.
_HELD_BYTES = 2 << 20


class SemaForm(nn.Module):
    """SEMA on a CPU: (B, H, W, C) → (B, H, W, C).

    Values are made for the whole map, because their mean and the convolution of LePE need all of them; queries and
    keys for a few rows of windows at a time. The weights of a window sum to one, so the mean is added to the values
    where they are copied into windows, and costs nothing there.
    """

    def __init__(self, attention: SemaAttention, kit: Kit) -> None:
        super().__init__()
        dim = attention.dim
        self.num_heads, self.window_size, self.pooling = attention.num_heads, attention.window_size, attention.pooling
        self.qk = kit.linear(attention.qkv, scale=_of_queries(attention, kit), outputs=slice(0, 2 * dim))
        self.v = kit.linear(attention.qkv, outputs=slice(2 * dim, 3 * dim))
        self.lepe = None if attention.lepe is None else kit.conv(attention.lepe)
        self._pool = attention._pool

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x)
        pooled = None if self.pooling == "none" else self._pool(v)
        out = torch.zeros_like(v) if self.lepe is None else self.lepe(v)
        for piece in _pieces(x, self.window_size):
            plus = None if pooled is None else pooled[piece[0]]
            _attend(self.qk(x[piece]), v[piece], plus, onto=out[piece], heads=self.num_heads, size=self.window_size)
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


def _attend(qk: Tensor, v: Tensor, pooled: Tensor | None, *, onto: Tensor, heads: int, size: int) -> None:
    """Add softmax attention inside each window to ``onto``; of a maximum, too, the sum of the weights is one."""
    for region in window_regions((v.shape[1], v.shape[2]), size):
        q, k = (_windows(part, region, heads) for part in qk.chunk(2, dim=-1))
        values = _windows(v, region, heads, plus=pooled)
        attended = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(dim=-1), values)
        slots = window_slots(onto, region, heads)
        slots.add_(attended.view(slots.shape))


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


def scaled_window_attention(attention: WindowAttention, kit: Kit) -> WindowAttention:
    """Return window attention with its scale folded into the queries."""
    attention.qkv = kit.linear(attention.qkv, scale=_of_queries(attention, kit))  # type: ignore[assignment]
    attention.scale = 1.0
    return attention
