"""Non-overlapping windows on a grid of any size, without padding.

Legend: B batch, H W token grid, C channels, h heads, d head dim, a×b one window, t = a·b its tokens.

A grid that no window size divides is cut into at most four regions — interior, right strip, bottom strip,
corner — and each region partitions exactly into equal windows (w×w, w×r, r×w, r×r'). Attending region by region
equals padding with a mask, with nothing to mask: no padded token can enter a softmax, a sum or a mean, or cost a
multiplication.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sema.macs import Grid


class Region(NamedTuple):
    """A rectangle of the grid that holds ``rows`` × ``columns`` windows of ``height`` × ``width`` tokens."""

    top: int
    left: int
    rows: int
    columns: int
    height: int
    width: int

    @property
    def windows(self) -> int:
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """Tokens of one window."""
        return self.height * self.width

    def view(self, x: Tensor) -> Tensor:
        """View ``x`` (B, H, W, C) as this region's windows: (B, rows, columns, height, width, C); nothing is copied."""
        bottom, right = self.top + self.rows * self.height, self.left + self.columns * self.width
        cut = x[:, self.top : bottom, self.left : right]
        cut = torch.unflatten(cut, 2, (self.columns, self.width))
        return torch.unflatten(cut, 1, (self.rows, self.height)).transpose(2, 3)


def window_regions(grid: Grid, window_size: int) -> list[Region]:
    """Cut ``grid`` into the regions whose windows tile it: one if ``window_size`` divides both sides, else up to 4."""
    return [
        Region(top, left, rows, columns, height, width)
        for top, rows, height in _runs(grid[0], window_size)
        for left, columns, width in _runs(grid[1], window_size)
    ]


def split_windows(x: Tensor, region: Region, *, parts: int, num_heads: int) -> Tensor:
    """Copy a region out of ``x`` (B, H, W, parts·C), windows and heads apart: (parts, B·windows, h, t, d)."""
    windows = torch.unflatten(region.view(x), -1, (parts, num_heads, -1))  # (B, rows, columns, a, b, parts, h, d)
    return windows.permute(5, 0, 1, 2, 6, 3, 4, 7).reshape(parts, -1, num_heads, region.tokens, windows.shape[-1])


def window_slots(x: Tensor, region: Region, num_heads: int) -> Tensor:
    """View a region of ``x`` (B, H, W, C) window by window: (B, rows, columns, h, a, b, d).

    Writing into the view, or adding to it, merges the windows in the pass that stores them.
    """
    return torch.unflatten(region.view(x), -1, (num_heads, -1)).permute(0, 1, 2, 5, 3, 4, 6)


def window_pairs(grid: Grid, window_size: int) -> int:
    """Count the pairs of tokens that share a window, ordered and with themselves: Σ over windows of t²."""
    return sum(region.windows * region.tokens**2 for region in window_regions(grid, window_size))


def _runs(side: int, window_size: int) -> list[tuple[int, int, int]]:
    """Cut a side into whole windows and a rest: (start, count, size) of each."""
    count, rest = side // window_size, side % window_size  # torch.compile has no divmod of sizes that it does not know
    runs = [(0, count, window_size), (count * window_size, 1, rest)]
    return [(start, number, size) for start, number, size in runs if number > 0 and size > 0]
