"""Positional terms that fit any grid: rotary embedding (RoPE) and depthwise convolutions (LePE, CPE).

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sema.layers.conv import DepthwiseConv2d
from sema.macs import Grid


class LocallyEnhancedPositionalEncoding(DepthwiseConv2d):
    """LePE (arXiv 2107.00652): a depthwise 3×3 convolution of the values, added to what attention gives."""


class ConditionalPositionalEncoding(DepthwiseConv2d):
    """CPE (arXiv 2102.10882): a depthwise 3×3 convolution of a block's input, added to it by the block."""


class RopeAngles(NamedTuple):
    """Rotation angles of 2-D RoPE in radians, by row and by column: small tables, broadcast over the grid when used.

    Attributes:
        rows: (H, 1, C/4), for the first half of the channel pairs.
        columns: (1, W, C/4), for the second half.
    """

    rows: Tensor
    columns: Tensor

    def over_grid(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply ``function`` to both tables and spread the results over the grid: (H, W, C/2).

        Sines of H + W rows cost nothing beside the H·W of a full table.
        """
        height, width = self.rows.shape[0], self.columns.shape[1]
        return torch.cat([function(angles).expand(height, width, -1) for angles in self], dim=-1)


def rope_angles(grid: Grid, dim: int, *, device: torch.device, dtype: torch.dtype, base: float = 1e4) -> RopeAngles:
    """Return the rotation angles of 2-D RoPE (arXiv 2104.09864, axial as in MILA).

    Channels (2i, 2i+1) form pair i. With K = C/4 and θ_k = base^(−k/K), pair k < K turns by row·θ_k and pair K + k
    by column·θ_k. The angles come from the live grid, so no size is built in.

    Args:
        grid: (H, W).
        dim: C; a multiple of 4.
        device: where the angles are wanted.
        dtype: float32 or wider; a half-precision angle is wrong by radians on a large grid.
        base: the slowest pair turns about ``base`` times slower than the fastest.
    """
    height, width = grid
    steps = torch.arange(dim // 4, device=device, dtype=dtype)
    theta = torch.pow(base, -steps / (dim // 4))
    rows = torch.arange(height, device=device, dtype=dtype)[:, None, None] * theta
    columns = torch.arange(width, device=device, dtype=dtype)[None, :, None] * theta
    return RopeAngles(rows, columns)


def rotate_pairs(x: Tensor, angles: RopeAngles) -> Tensor:
    """Rotate the channel pairs (2i, 2i+1) of ``x`` (B, H, W, …, C) by their angles, in the angles' dtype or wider.

    Eager float32 and float64 multiply complex numbers: one pass over ``x``, four times faster on a CPU than the four
    strided products of real arithmetic (58 against 230 µs for 56×56×128). Compilers have no code for complex
    numbers and half precision has no complex type; there the same rotation is written out.
    """
    pairs = torch.unflatten(x, -1, (-1, 2))
    between = (1,) * (x.ndim - 4)  # dimensions of x between the grid and the channels

    def spread(function: Callable[[Tensor], Tensor]) -> Tensor:
        table = angles.over_grid(function)
        return table.view(*table.shape[:2], *between, table.shape[2])

    if x.dtype == angles.rows.dtype and not torch.compiler.is_compiling():
        turn = spread(lambda angle: torch.polar(torch.ones_like(angle), angle))
        return torch.view_as_real(torch.view_as_complex(pairs) * turn).flatten(-2)
    even, odd = pairs.unbind(-1)
    cos, sin = spread(torch.cos), spread(torch.sin)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
