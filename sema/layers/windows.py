"""Non-overlapping windows on a grid of any size: three rules for their size, and how a grid is cut into them.

Legend: B batch, H W token grid, C channels, h heads, d head dim, a×b one window, t = a·b its tokens.

If a window does not divide the grid, the grid is cut into at most four regions — interior, right strip, bottom
strip, corner — and each region partitions exactly into equal windows (w×w, w×r, r×w, r×r'). Attending region by
region is equivalent to padding with a mask, but there is nothing to mask: no padded token can enter a softmax, a sum
or a mean, or cost a multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


FORMS = ("masked", "padded", "scaled")


class WindowLayout(NamedTuple):
    """How one map is cut into windows: its padded grid, the sides of a window, and the shift down and across."""

    grid: Grid
    window: Grid
    shift: Grid


@dataclass(frozen=True)
class WindowRule:
    """The layout of windows on a map of any size.

    Attributes:
        form: ``masked``: windows of ``size``, smaller ones at the right and bottom edge. ``padded``: the map grows at
            these edges until ``size`` divides it. ``scaled``: a window's side is ``size`` · side / base side, rounded
            up, so a map never has more windows than the base grid; smaller ones at the edge.
        size: side of a window in tokens.
        shift: how far the map is rolled before it is cut. Unless padded, a map is not rolled if one of its sides fits
            into one window. Scaled windows are shifted by half a window, rounded down, or not at all.
        base: grid at which scaled windows have ``size``.
    """

    form: str
    size: int
    shift: int
    base: Grid

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"window_size must be at least 1; got {self.size}")
        if not 0 <= self.shift < self.size:
            raise ValueError(f"shift_size must be in [0, window_size={self.size}); got {self.shift}")
        if self.form not in FORMS:
            raise ValueError(f"windows must be one of {', '.join(FORMS)}; got {self.form!r}")
        if min(self.base) < 1:
            raise ValueError(f"the grid of scaled windows must be positive; got {self.base}")
        if self.form == "scaled" and self.shift not in (0, self.size // 2):
            raise ValueError(f"scaled windows take shift_size 0 or {self.size // 2}, half a window; got {self.shift}")

    def layout(self, grid: Grid) -> WindowLayout:
        """Cut a map of ``grid`` tokens into windows."""
        height, width = grid
        size, shift = self.size, self.shift
        if self.form == "padded":
            padded = (-(-height // size) * size, -(-width // size) * size)
            return WindowLayout(padded, (size, size), (shift, shift))
        window = (size, size)
        if self.form == "scaled":
            window = (-(-size * height // self.base[0]), -(-size * width // self.base[1]))
        if height <= window[0] or width <= window[1] or not shift:
            return WindowLayout(grid, window, (0, 0))
        return WindowLayout(grid, window, (shift, shift) if self.form == "masked" else (window[0] // 2, window[1] // 2))


def pad_map(x: Tensor, grid: Grid) -> Tensor:
    """Pad ``x`` (B, H, W, C) with zeros at the bottom and right to ``grid``."""
    bottom, right = grid[0] - x.shape[1], grid[1] - x.shape[2]
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def window_regions(grid: Grid, window: Grid) -> list[Region]:
    """Cut ``grid`` into the regions whose windows tile it: one if ``window`` divides both sides, else up to 4."""
    return [
        Region(top, left, rows, columns, height, width)
        for top, rows, height in _runs(grid[0], window[0])
        for left, columns, width in _runs(grid[1], window[1])
    ]


def split_windows(x: Tensor, region: Region, *, parts: int, num_heads: int) -> Tensor:
    """Copy a region out of ``x`` (B, H, W, parts·C), split into windows and heads: (parts, B·windows, h, t, d)."""
    windows = torch.unflatten(region.view(x), -1, (parts, num_heads, -1))  # (B, rows, columns, a, b, parts, h, d)
    return windows.permute(5, 0, 1, 2, 6, 3, 4, 7).reshape(parts, -1, num_heads, region.tokens, windows.shape[-1])


def window_slots(x: Tensor, region: Region, num_heads: int) -> Tensor:
    """View a region of ``x`` (B, H, W, C) window by window: (B, rows, columns, h, a, b, d).

    Writing or adding to the view merges the windows in the same pass that stores them.
    """
    return torch.unflatten(region.view(x), -1, (num_heads, -1)).permute(0, 1, 2, 5, 3, 4, 6)


def window_pairs(grid: Grid, window: Grid) -> int:
    """Count the ordered pairs of tokens that share a window, each token with itself too: Σ over windows of t²."""
    return sum(region.windows * region.tokens**2 for region in window_regions(grid, window))


def _runs(side: int, window_size: int) -> list[tuple[int, int, int]]:
    """Cut a side into whole windows and a remainder: (start, count, size) of each."""
    count, rest = side // window_size, side % window_size  # torch.compile has no divmod for symbolic sizes
    runs = [(0, count, window_size), (count * window_size, 1, rest)]
    return [(start, number, size) for start, number, size in runs if number > 0 and size > 0]
