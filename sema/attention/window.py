"""Softmax attention inside non-overlapping windows, with Swin's shift and relative position bias as options.

Paper: Swin Transformer, arXiv 2103.14030.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, w window size, t tokens of one window.

Equation, for token m in window J(m):

    out_m = Σ_{j∈J(m)} exp(s q_m·k_j + b_{mj}) v_j / Σ_{i∈J(m)} exp(s q_m·k_i + b_{mi})

with scale s and, as an option, a learned bias b that depends on the offset between m and j. With a shift, the map is
rolled by −shift before the windows are cut and rolled back after; tokens that share a window only because the roll
wrapped one of them around the edge do not attend to each other.

Complexity: 3NC² for the projections, 2·C·Σt² ≤ 2·N·w²·C for the products; linear in N.

Deviations from the paper: a grid that w does not divide is not padded, its last windows are smaller. The official code
pads and masks the padding, which gives the same numbers at the cost of the padded tokens. The bias of a smaller window
is the part of the table that its offsets use, as with padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention, merge_heads, split_parts
from sema.layers.windows import Region, split_windows, window_pairs, window_regions, window_slots
from sema.macs import Grid, Macs, linear_macs


class WindowAttention(Attention):
    """Softmax attention inside w×w windows; optional shift and relative position bias (Swin).

    Args:
        dim: channels C.
        num_heads: heads h.
        window_size: side w of a window in tokens.
        shift_size: how far the map is rolled before it is cut, 0 ≤ shift < w. Along a side that one window covers
            there is no shift, as in Swin: it would only take neighbours apart.
        relative_position_bias: add a learned bias per head and offset, ``relative_position_bias_table`` ((2w−1)², h).
        scale: factor s of the scores; None is 1/√d.
        qkv_bias: whether the projections have a bias.

    Raises:
        ValueError: ``window_size`` < 1, or ``shift_size`` outside [0, window_size).
    """

    has_coefficients = True
    row_sum = 1.0

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        shift_size: int = 0,
        relative_position_bias: bool = False,
        scale: float | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads)
        check_window_size(window_size)
        if not 0 <= shift_size < window_size:
            raise ValueError(f"shift_size must be in [0, window_size={window_size}); got {shift_size}")
        self.window_size = window_size
        self.shift_size = shift_size
        self.scale = self.head_dim**-0.5 if scale is None else float(scale)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.relative_position_bias_table: nn.Parameter | None = None
        if relative_position_bias:
            table = torch.empty((2 * window_size - 1) ** 2, num_heads)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        shifts = self._shifts((x.shape[1], x.shape[2]))
        if any(shifts):
            x = x.roll((-shifts[0], -shifts[1]), dims=(1, 2))
        bias = self._bias if any(shifts) or self.relative_position_bias_table is not None else None
        out = attend_in_windows(
            self.qkv(x), num_heads=self.num_heads, window_size=self.window_size, scale=self.scale, bias=bias
        )
        return out.roll(shifts, dims=(1, 2)) if any(shifts) else out

    def reference(self, x: Tensor) -> Tensor:
        """Weigh the values by the N×N matrix in which all pairs outside a window are masked."""
        return merge_heads(self.coefficients(x) @ self.values(x), (x.shape[1], x.shape[2]))

    def coefficients(self, x: Tensor) -> Tensor:
        q, k, _ = split_parts(self.qkv(x), 3, self.num_heads)
        grid = (x.shape[1], x.shape[2])
        scores = self.scale * q @ k.transpose(-2, -1)
        rows, columns = (
            (torch.arange(side, device=x.device) - shift) % side
            for side, shift in zip(grid, self._shifts(grid), strict=True)
        )
        row, column = (index.flatten() for index in torch.meshgrid(rows, columns, indexing="ij"))
        w = self.window_size
        wrapped = [
            index >= side - shift for index, side, shift in zip((row, column), grid, self._shifts(grid), strict=True)
        ]
        if self.relative_position_bias_table is not None:
            offsets = [(index[:, None] - index).clamp(1 - w, w - 1) + w - 1 for index in (row, column)]
            bias = self.relative_position_bias_table[offsets[0] * (2 * w - 1) + offsets[1]]  # (N, N, h)
            scores = scores + bias.permute(2, 0, 1)
        together = torch.ones_like(scores[0, 0], dtype=torch.bool)
        for label in (row // w, column // w, *wrapped):
            together = together & (label[:, None] == label)
        return scores.masked_fill(~together, float("-inf")).softmax(dim=-1)

    def values(self, x: Tensor) -> Tensor:
        return split_parts(self.qkv(x), 3, self.num_heads)[2]

    def macs(self, grid: Grid) -> Macs:
        projection = linear_macs(grid[0] * grid[1], self.dim, 3 * self.dim)
        return projection.plus(Macs(attention=2 * self.dim * window_pairs(grid, self.window_size)))

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, shift_size={self.shift_size}, scale={self.scale:g}"

    def _shifts(self, grid: Grid) -> Grid:
        height, width = (self.shift_size if side > self.window_size else 0 for side in grid)
        return height, width

    def _bias(self, region: Region, qkv: Tensor) -> Tensor:
        """What is added to the scores of a region: broadcastable to (B, windows, h, t, t)."""
        bias = qkv.new_zeros(())
        if self.relative_position_bias_table is not None:
            index = self._relative_index(region, qkv.device)
            bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # (h, t, t)
        grid = (qkv.shape[1], qkv.shape[2])
        shifts = self._shifts(grid)
        if any(shifts):
            row = torch.arange(grid[0], device=qkv.device)[:, None] >= grid[0] - shifts[0]
            column = torch.arange(grid[1], device=qkv.device) >= grid[1] - shifts[1]
            label = (2 * row + column)[None, :, :, None]  # which of the four wrapped parts a token comes from
            windows = region.view(label).reshape(-1, 1, region.tokens)  # (windows, 1, t)
            apart = windows[..., :, None] != windows[..., None, :]
            bias = bias.masked_fill(apart, float("-inf"))
        return bias.to(qkv.dtype)

    def _relative_index(self, region: Region, device: torch.device) -> Tensor:
        """Rows of the bias table for the pairs of a region's windows, (t, t)."""
        w = self.window_size
        row = torch.arange(region.height, device=device).repeat_interleave(region.width)
        column = torch.arange(region.width, device=device).repeat(region.height)
        return (row[:, None] - row + w - 1) * (2 * w - 1) + column[:, None] - column + w - 1


def attend_in_windows(
    qkv: Tensor,
    *,
    num_heads: int,
    window_size: int,
    scale: float,
    bias: Callable[[Region, Tensor], Tensor] | None = None,
    onto: Tensor | None = None,
) -> Tensor:
    """Softmax attention inside each window: (B, H, W, 3C) → (B, H, W, C).

    On CUDA the windows go to ``F.scaled_dot_product_attention``. Elsewhere scores and softmax are explicit: CPU
    SDPA, tiled for long sequences, is up to 35 % slower on the 49 tokens of a window (56×56 grid, two heads, two
    threads: 518 against 385 µs; no difference with a single window).

    Args:
        qkv: queries, keys and values, one after the other in the last dimension.
        num_heads: heads h.
        window_size: side of a window in tokens.
        scale: factor of the scores.
        bias: gives what a region's scores get added, broadcastable to (B, windows, h, t, t).
        onto: a (B, H, W, C) tensor, written in place: the result is added to it while the windows are merged,
            which saves a pass over the map. Without it the windows are merged into a new tensor.
    """
    batch, height, width, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3) if onto is None else onto
    for region in window_regions((height, width), window_size):
        q, k, v = split_windows(qkv, region, parts=3, num_heads=num_heads).unbind(0)  # (B·windows, h, t, d)
        added = None
        if bias is not None:
            added = bias(region, qkv).expand(batch, region.windows, num_heads, -1, -1).flatten(0, 1)
        if is_fused(qkv.device):
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=added, scale=scale)
        else:
            scores = (q * scale) @ k.transpose(-2, -1)
            attended = (scores if added is None else scores + added).softmax(dim=-1) @ v
        slots = window_slots(out, region, num_heads)
        attended = attended.view(slots.shape)
        _ = slots.copy_(attended) if onto is None else slots.add_(attended)
    return out


def is_fused(device: torch.device) -> bool:
    """Whether windows on ``device`` go to ``F.scaled_dot_product_attention``; decided by the device alone."""
    return device.type == "cuda"


def check_window_size(window_size: int) -> None:
    """Refuse a window without tokens.

    Raises:
        ValueError: ``window_size`` < 1.
    """
    if window_size < 1:
        raise ValueError(f"window_size must be at least 1; got {window_size}")
