"""Learned positions of patches and of a class token, interpolated from the grid of the table to the live one.

Legend: H W grid of patches, N = H·W, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sema.layers.kept import KeptTable
from sema.layers.positions import stored_grid
from sema.macs import Grid


class LearnedPositions:
    """Gives a table (1, 1 + N₀, C) for any grid: the table itself at its own grid, interpolated (bicubic) elsewhere.

    The result of the last grid is kept while nothing is trained: interpolating at each forward pass cost DeiT-S 0.5 %
    at 1024, and the official code does it once, on loading.

    Args:
        built: grid that the model was built for. A table of another size is taken for a square, or for the live grid if
            it has as many positions.
        class_in_middle: the class token has index ⌊N/2⌋, in the table and in the result; otherwise index 0.
    """

    def __init__(self, built: Grid, *, class_in_middle: bool = False) -> None:
        self.built = built
        self.class_in_middle = class_in_middle
        self._kept = KeptTable[Tensor]()

    def __call__(self, table: Tensor, grid: Grid, *, training: bool) -> Tensor:
        """Return the positions of the tokens of ``grid``, (1, 1 + N, C)."""
        if grid == stored_grid(table.shape[1] - 1, self.built, grid):
            return table
        return self._kept((table,), grid, lambda live: self._interpolated(table, live), training=training)

    def fit_stored(self, stored: Tensor, table: Tensor) -> Tensor:
        """Accept a table of another size as it is.

        Raises:
            ValueError: other channels.
        """
        if stored.ndim != 3 or stored.shape[0] != 1 or stored.shape[2] != table.shape[2]:
            raise ValueError(f"positions must be (1, 1 + N, {table.shape[2]}); got {tuple(stored.shape)}")
        return stored

    def _interpolated(self, table: Tensor, grid: Grid) -> Tensor:
        base = stored_grid(table.shape[1] - 1, self.built)
        of_class, of_patches = self._apart(table)
        maps = torch.unflatten(of_patches, 1, base).permute(0, 3, 1, 2)  # (1, C, base height, base width)
        live = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        at = self._class_index(live.shape[1])
        return torch.cat((live[:, :at], of_class, live[:, at:]), dim=1)

    def _apart(self, table: Tensor) -> tuple[Tensor, Tensor]:
        at = self._class_index(table.shape[1] - 1)
        return table[:, at : at + 1], torch.cat((table[:, :at], table[:, at + 1 :]), dim=1)

    def _class_index(self, patches: int) -> int:
        return patches // 2 if self.class_in_middle else 0
