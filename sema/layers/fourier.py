"""Fourier features of positions, projected to channels (XCiT, arXiv 2106.09681; DETR's sine encoding).

Legend: H W grid, F frequencies, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sema.layers.kept import KeptTable
from sema.macs import Grid, Macs

_TEMPERATURE = 10_000
_EPSILON = 1e-6


class FourierPositions(nn.Module):
    """Gives the encoding (1, H, W, C) of any grid; positions run from 1/H and 1/W to 1, so that sizes share a scale.

    The encoding of the last grid is kept while nothing is trained: the official code makes it at every forward pass.
    """

    def __init__(self, dim: int, *, frequencies: int = 32) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.token_projection = nn.Conv2d(2 * frequencies, dim, 1)
        self._kept = KeptTable[Tensor]()

    def forward(self, grid: Grid) -> Tensor:
        # The features are constants: the two parameters alone decide whether a kept encoding is still right.
        weight, bias = self.token_projection.weight, self.token_projection.bias
        assert bias is not None
        return self._kept((weight, bias), grid, self._encoding, training=self.training)

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs of making the encoding of ``grid``, which the official code does for every image."""
        return Macs(convolution=grid[0] * grid[1] * self.token_projection.weight.numel())

    def _encoding(self, grid: Grid) -> Tensor:
        weight = self.token_projection.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        waves = []
        exponents = torch.arange(self.frequencies, device=weight.device).div(2, rounding_mode="floor").to(wide)
        periods = _TEMPERATURE ** (2 * exponents / self.frequencies)
        for side in grid:
            steps = torch.arange(1, side + 1, device=weight.device, dtype=wide)
            angles = (steps / (side + _EPSILON) * 2 * math.pi)[:, None] / periods  # (side, F)
            waves.append(torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1))
        rows, columns = waves
        features = torch.cat(
            (rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)), dim=-1
        )  # (H, W, 2F): rows first
        encoding: Tensor = self.token_projection(features.to(weight.dtype).permute(2, 0, 1).unsqueeze(0))
        return encoding.permute(0, 2, 3, 1)
