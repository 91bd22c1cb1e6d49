"""Softmax attention inside non-overlapping windows, with Swin's shift and relative position bias as options.

Paper: Swin Transformer, arXiv 2103.14030.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, w window size, t tokens of one window.

Equation, for token m in window J(m):

    out_m = Σ_{j∈J(m)} exp(s q_m·k_j + b_{mj}) v_j / Σ_{i∈J(m)} exp(s q_m·k_i + b_{mi})

with scale s and, as an option, a learned bias b that depends on the offset between m and j. With a shift, the map is
rolled by −shift before the windows are cut and rolled back after; tokens that share a window only because the roll
wrapped one of them around the edge do not attend to each other.

If w does not divide the map, the paper leaves a choice, and ``windows`` makes it:

- ``masked``, ours: the last windows are smaller. This is equivalent to padding that is masked out of every softmax. A
  smaller window uses the part of the bias table that covers its offsets.
- ``padded``: as in the authors' dense code, microsoft's Swin-Transformer-Object-Detection. The map is padded with
  zeros before the roll. Each row also sums over the padding of its window, whose keys and values are the biases of the
  projection. A map that fits into one window is still shifted.
- ``scaled``: w grows with the map, as in VMamba's Table 9 (arXiv 2401.10166). The bias is interpolated (bicubic) to
  the offsets of the new window, as the official code does when it loads a checkpoint with another window size.

The authors' classification code takes only one size, at which w divides every map; ``masked`` computes the same there.

Complexity: 3NC² for the projections, 2·C·Σt² ≤ 2·N·w²·C for the products; linear in N. With ``padded``, N includes the
padding. With ``scaled``, w² grows with N, so the products are quadratic.

Deviations from the paper: none if w divides the map.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention, QkvAttention
from sema.layers.table_cache import TableCache
from sema.layers.tokens import chosen_rows, merge_heads, wide_dtype
from sema.layers.windows import (
    WindowLayout,
    WindowRule,
    pad_map,
    split_windows,
    window_pairs,
    window_regions,
    window_slots,
)
from sema.macs import Grid, Macs


class WindowAttention(QkvAttention):
    """Softmax attention inside w×w windows; optional shift and relative position bias (Swin).

    Args:
        window_size: side w of a window in tokens.
        shift_size: how far the map is rolled before it is cut, 0 ≤ shift < w. Unless padded, a map is not shifted at
            all if one of its sides fits into one window, as in Swin's classification code.
        relative_position_bias: add a learned bias per head and offset, ``relative_position_bias_table`` ((2w−1)², h).
        scale: factor s of the scores; None is 1/√d.
        windows: ``masked``, ``padded`` or ``scaled``, see above and ``sema.layers.windows.WindowRule``. An (H, W) means
            ``scaled`` with ``window_size`` at that grid: a model passes its stage's grid; the default is (14, 14).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        shift_size: int = 0,
        relative_position_bias: bool = False,
        scale: float | None = None,
        windows: str | Grid = "masked",
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        form, base = (windows, (14, 14)) if isinstance(windows, str) else ("scaled", (windows[0], windows[1]))
        self.rule = WindowRule(form, window_size, shift_size, base)
        self.window_size = window_size
        self.scale = self.head_dim**-0.5 if scale is None else float(scale)
        self.relative_position_bias_table: nn.Parameter | None = None
        if relative_position_bias:
            table = torch.empty((2 * window_size - 1) ** 2, num_heads)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        self._table_cache = TableCache[tuple[Tensor, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        layout = self.rule.layout(grid)
        (down, across), masks = layout.shift, None
        x = pad_map(x, layout.grid)
        if down or across:
            x = x.roll((-down, -across), dims=(1, 2))
        qkv = self.qkv(x)
        if down or across:
            # A tracer's tensors must not outlive it.
            is_traced = torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type == "meta"
            key = (layout, qkv.device, qkv.dtype)
            masks = _shift_masks(*key) if is_traced else _cached_masks(*key, torch.is_inference_mode_enabled())
        out = attend_in_windows(
            qkv,
            num_heads=self.num_heads,
            window=layout.window,
            scale=self.scale,
            biases=self.biases(grid),
            masks=masks,
        )
        if down or across:
            out = out.roll((down, across), dims=(1, 2))
        return out if layout.grid == grid else out[:, : grid[0], : grid[1]]

    def reference(self, x: Tensor) -> Tensor:
        """Multiply the values, including those of any padding, by the explicit N×N matrix."""
        height, width = x.shape[1:3]
        x = pad_map(x, self.rule.layout((height, width)).grid)
        return merge_heads(self._weights(x) @ self.heads(x)[2], (x.shape[1], x.shape[2]))[:, :height, :width]

    @property
    def has_coefficients(self) -> bool:
        """True unless the windows are padded, where rows also weight tokens outside the map."""
        return self.rule.form != "padded"

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mask all pairs outside a window, then take the softmax; see ``Attention.coefficients``."""
        return self._weights(x, rows) if self.rule.form != "padded" else Attention.coefficients(self, x)

    def _weights(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute the coefficients of a map that is already padded."""
        q, k, _ = self.heads(x)
        grid, (height, width), shift = self.rule.layout((x.shape[1], x.shape[2]))
        scores = self.scale * chosen_rows(q, rows) @ k.transpose(-2, -1)
        ys, xs = ((torch.arange(n, device=x.device) - s) % n for n, s in zip(grid, shift, strict=True))
        row, column = (index.flatten() for index in torch.meshgrid(ys, xs, indexing="ij"))
        wrapped = [index >= n - s for index, n, s in zip((row, column), grid, shift, strict=True)]
        if self.relative_position_bias_table is not None:
            down, across = (
                (chosen_rows(index, rows, 0)[:, None] - index).clamp(1 - side, side - 1) + side - 1
                for index, side in ((row, height), (column, width))
            )
            bias = self._bias_table((height, width))[down * (2 * width - 1) + across]  # (N, N, h)
            scores = scores + bias.permute(2, 0, 1)
        together = torch.ones_like(scores[0, 0], dtype=torch.bool)
        for label in (row // height, column // width, *wrapped):
            together = together & (chosen_rows(label, rows, 0)[:, None] == label)
        return scores.masked_fill(~together, float("-inf")).softmax(dim=-1)

    def macs(self, grid: Grid) -> Macs:
        grid, window, _ = self.rule.layout(grid)
        return self.projection_macs(grid).plus(Macs(attention=2 * self.dim * window_pairs(grid, window)))

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, shift_size={self.rule.shift}, scale={self.scale:g}, {self.rule.form}"

    def fit_stored(self, name: str, stored: Tensor) -> Tensor | None:
        """Interpolate (bicubic) the biases of windows of another size, as the official code does when it loads them."""
        side = math.isqrt(stored.shape[:1].numel())
        if name != "relative_position_bias_table" or stored.shape != (side * side, self.num_heads):
            return None
        return _resized(stored, (self.window_size, self.window_size))

    def biases(self, grid: Grid) -> tuple[Tensor, ...] | None:
        """Gather the relative position biases of each region of ``grid``, (h, t, t); None without a table."""
        table = self.relative_position_bias_table
        return None if table is None else self._table_cache((table,), grid, self._gather_biases, training=self.training)

    def _bias_table(self, window: Grid) -> Tensor:
        """Resize the learned table to ``window``, (offsets, h)."""
        assert self.relative_position_bias_table is not None
        return _resized(self.relative_position_bias_table, window)

    def _gather_biases(self, grid: Grid) -> tuple[Tensor, ...]:
        grid, window, _ = self.rule.layout(grid)
        table, (height, width) = self._bias_table(window), window
        biases = []
        for region in window_regions(grid, window):
            row = torch.arange(region.height, device=table.device).repeat_interleave(region.width)
            column = torch.arange(region.width, device=table.device).repeat(region.height)
            offset = (row[:, None] - row + height - 1) * (2 * width - 1) + column[:, None] - column + width - 1
            biases.append(table[offset].permute(2, 0, 1).contiguous())
        return tuple(biases)


def _resized(table: Tensor, window: Grid) -> Tensor:
    """Interpolate (bicubic) biases (side², h) to the (2a−1)·(2b−1) offsets of a window a×b, in float32 or wider."""
    side, target = math.isqrt(len(table)), (2 * window[0] - 1, 2 * window[1] - 1)
    if target == (side, side):
        return table
    maps = table.T.reshape(1, -1, side, side).to(wide_dtype(table))
    return F.interpolate(maps, size=target, mode="bicubic").flatten(2)[0].T


def _shift_masks(
    layout: WindowLayout, device: torch.device, dtype: torch.dtype, inference: bool = False
) -> tuple[Tensor, ...]:
    """Mask, in each region of a shifted grid, pairs that only the roll brought together: −inf, (windows, 1, t, t)."""
    grid, window, (down, across) = layout
    row = torch.arange(grid[0], device=device)[:, None] >= grid[0] - down
    column = torch.arange(grid[1], device=device) >= grid[1] - across
    label = (2 * row + column)[None, :, :, None]  # which of the four wrapped parts a token comes from
    masks = []
    for region in window_regions(grid, window):
        windows = region.view(label).reshape(-1, 1, region.tokens)  # (windows, 1, t)
        apart = windows[..., :, None] != windows[..., None, :]
        masks.append(torch.zeros_like(apart, dtype=dtype).masked_fill(apart, float("-inf")))
    return tuple(masks)


#: The most images or heads that one axis of a CUDA kernel's grid holds (pytorch#142228, pytorch#146704).
_MOST_AT_ONCE = 65_535

#: The blocks of a stage share their masks.
#: ``inference`` is part of the key, because autograd refuses tensors that were made in inference mode.
_cached_masks = functools.lru_cache(maxsize=4)(_shift_masks)


def attend_in_windows(
    qkv: Tensor,
    *,
    num_heads: int,
    window: Grid,
    scale: float,
    biases: tuple[Tensor, ...] | None = None,
    masks: tuple[Tensor, ...] | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """Attend inside each window: (B, H, W, 3C) → (B, H, W, C).

    On CUDA the windows go to ``F.scaled_dot_product_attention``. Elsewhere scores and softmax are explicit: CPU
    SDPA, tiled for long sequences, is up to 35 % slower on the 49 tokens of a window (56×56 grid, two heads, two
    threads: 518 against 385 µs; no difference with a single window).

    Args:
        qkv: queries, keys and values, concatenated in the last dimension.
        num_heads, scale: as in ``WindowAttention``.
        window: sides of a window.
        biases: one per region, added to its scores, (h, t, t).
        masks: one per region, added to the scores of its windows, (windows, 1, t, t).
        onto: a (B, H, W, C) tensor to which the result is added in place, while the windows are merged; this saves a
            pass over the map. Without it, the windows are merged into a new tensor.
    """
    batch, height, width, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3) if onto is None else onto
    for index, region in enumerate(window_regions((height, width), window)):
        q, k, v = split_windows(qkv, region, parts=3, num_heads=num_heads).unbind(0)  # (B·windows, h, t, d)
        terms = [part[index].to(qkv.dtype) for part in (biases, masks) if part is not None]
        if is_fused(qkv.device):
            added = functools.reduce(torch.add, terms) if terms else None  # (h, t, t) or (windows, 1 or h, t, t)
            if masks is not None:  # the images of a batch share masks, and SDPA repeats these only along the batch
                assert added is not None
                q, k, v = (torch.unflatten(x, 0, (batch, region.windows)).flatten(1, 2) for x in (q, k, v))
                added = added.expand(-1, num_heads, -1, -1).flatten(0, 1)  # (windows·h, t, t)
            attended = _attend_fused(q, k, v, added, scale, dim=0 if masks is None else 1)
        else:
            scores = (q if scale == 1.0 else q * scale) @ k.transpose(-2, -1)
            if biases is not None:
                scores.add_(terms[0])
            if masks is not None:  # through a view, whose gradient costs three copies
                torch.unflatten(scores, 0, (batch, region.windows)).add_(terms[-1])
            attended = scores.softmax(dim=-1) @ v
        slots = window_slots(out, region, num_heads)
        attended = attended.view(slots.shape)
        _ = slots.copy_(attended) if onto is None else slots.add_(attended)
    return out


def _attend_fused(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float, *, dim: int) -> Tensor:
    """Attend by SDPA, in pieces of at most ``_MOST_AT_ONCE`` along ``dim``; ``added`` is (second dimension, t, t)."""
    if q.shape[dim] <= _MOST_AT_ONCE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
    parts = [x.split(_MOST_AT_ONCE, dim) for x in (q, k, v)]
    terms = [added] * len(parts[0]) if added is None or dim == 0 else added.split(_MOST_AT_ONCE)
    pieces = [
        F.scaled_dot_product_attention(q, k, v, attn_mask=term, scale=scale)
        for q, k, v, term in zip(*parts, terms, strict=True)
    ]
    return torch.cat(pieces, dim)


def is_fused(device: torch.device) -> bool:
    """True if windows on ``device`` go to ``F.scaled_dot_product_attention``; depends only on the device."""
    return device.type == "cuda"
