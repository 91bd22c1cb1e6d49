"""Positional terms that fit any grid: rotations (RoPE), convolutions (LePE, CPE), learned tables, Fourier features.

Legend: B batch, H W token grid, N = H·W, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.conv import DepthwiseConv2d
from sema.layers.table_cache import TableCache
from sema.layers.tokens import wide_dtype
from sema.macs import Grid, Macs

_FOURIER_TEMPERATURE = 10_000
_FOURIER_EPSILON = 1e-6


class LocallyEnhancedPositionalEncoding(DepthwiseConv2d):
    """LePE (arXiv 2107.00652): a depthwise 3×3 convolution of the values, added to the output of the attention."""


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
    """Compute the rotation angles of 2-D RoPE (arXiv 2104.09864, axial as in MILA).

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


def rotate_positions(x: Tensor) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, H, W, …, C) by the angles of their positions; half precision gives float32.

    Eager float32 and float64 multiply complex numbers: one pass over ``x``, four times faster on a CPU than the four
    strided products of real arithmetic (58 against 230 µs for 56×56×128). Compilers have no code for complex
    numbers and half precision has no complex type; there the same rotation is written out.
    """
    grid, dim = (x.shape[1], x.shape[2]), x.shape[-1]
    dtype = wide_dtype(x)
    if x.dtype != dtype or torch.compiler.is_compiling():
        return rotate_written_out(x, rope_angles(grid, dim, device=x.device, dtype=dtype))
    real_tensors = type(x) is Tensor and x.device.type != "meta"  # tracers bring tensors that must not outlive them
    turns = _cached_turns if real_tensors else _turns
    turn = turns(grid, dim, x.device, dtype, torch.is_inference_mode_enabled())
    turn = turn.view(*grid, *(1,) * (x.ndim - 4), dim // 2)
    pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def rotate_written_out(x: Tensor, angles: RopeAngles) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, H, W, …, C) in real arithmetic, in the angles' dtype or wider."""
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    shape = (*x.shape[1:3], *(1,) * (x.ndim - 4), x.shape[-1] // 2)
    cos, sin = (angles.over_grid(function).view(shape) for function in (torch.cos, torch.sin))
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _turns(grid: Grid, dim: int, device: torch.device, dtype: torch.dtype, inference: bool) -> Tensor:
    """Make the complex rotation of every position, (H, W, C/2)."""
    angles = rope_angles(grid, dim, device=device, dtype=dtype)
    return angles.over_grid(lambda angle: torch.polar(torch.ones_like(angle), angle))


#: The official code stores the rotation, for its one size; computing it in each block cost MILA-T 1 % of its time.
#: ``inference`` is part of the key, because autograd refuses tensors that were made in inference mode.
_cached_turns = functools.lru_cache(maxsize=8)(_turns)


def stored_grid(count: int, built: Grid, live: Grid | None = None) -> Grid:
    """Return the grid of a table of ``count`` positions: ``built`` if it has as many, else a square, else ``live``.

    A checkpoint may store its table at another size than the model's; it is then interpolated from that size to each
    input, once instead of twice.

    Raises:
        ValueError: ``count`` fits none of these, so the grid of the table is unknown.
    """
    if count == built[0] * built[1]:
        return built
    side = math.isqrt(count)
    if side * side == count > 0:
        return side, side
    if live is not None and count == live[0] * live[1]:
        return live
    raise ValueError(
        f"a table of {count} positions is neither a square nor for the grid {built[0]}×{built[1]} of this model; "
        "build the model with the img_size that the table was made for"
    )


class LearnedPositions:
    """Fit a table (1, 1 + N₀, C) to any grid: as it is at its stored grid, interpolated (bicubic) elsewhere.

    The result of the last grid is cached in eval mode: interpolating at each forward pass cost DeiT-S 0.5 % at 1024.
    The official code does it once, on loading.

    Args:
        built: grid of the model. A table of another size is a square, or the live grid if the counts agree.
        class_in_middle: the class token has index ⌊N/2⌋, in the table and in the result; otherwise index 0.
    """

    def __init__(self, built: Grid, *, class_in_middle: bool = False) -> None:
        self.built = built
        self.class_in_middle = class_in_middle
        self._table_cache = TableCache[Tensor]()

    def __call__(self, table: Tensor, grid: Grid, *, training: bool) -> Tensor:
        """Return the positions of the tokens of ``grid``, (1, 1 + N, C)."""
        if grid == stored_grid(table.shape[1] - 1, self.built, grid):
            return table
        return self._table_cache((table,), grid, lambda live: self._interpolated(table, live), training=training)

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
        index = self._class_index(table.shape[1] - 1)
        class_token, patches = table[:, index : index + 1], torch.cat((table[:, :index], table[:, index + 1 :]), dim=1)
        maps = torch.unflatten(patches, 1, base).permute(0, 3, 1, 2)  # (1, C, base height, base width)
        live = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        index = self._class_index(live.shape[1])
        return torch.cat((live[:, :index], class_token, live[:, index:]), dim=1)

    def _class_index(self, patches: int) -> int:
        return patches // 2 if self.class_in_middle else 0


class FourierPositions(nn.Module):
    """Fourier features of positions, projected to channels (XCiT, arXiv 2106.09681): the encoding (1, H, W, C).

    Positions run from 1/H and 1/W to 1, so that all sizes share a scale; F frequencies encode each side. The last
    encoding is cached in eval mode; the official code computes it at every forward pass.
    """

    def __init__(self, dim: int, *, frequencies: int = 32) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.token_projection = nn.Conv2d(2 * frequencies, dim, 1)
        self._table_cache = TableCache[Tensor]()

    def forward(self, grid: Grid) -> Tensor:
        # The features are constants: the two parameters alone decide whether a cached encoding is still right.
        weight, bias = self.token_projection.weight, self.token_projection.bias
        assert bias is not None
        return self._table_cache((weight, bias), grid, self._encoding, training=self.training)

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs of making the encoding of ``grid``, which the official code does for every image."""
        return Macs(convolution=grid[0] * grid[1] * self.token_projection.weight.numel())

    def _encoding(self, grid: Grid) -> Tensor:
        weight = self.token_projection.weight
        wide = wide_dtype(weight)
        waves = []
        exponents = torch.arange(self.frequencies, device=weight.device).div(2, rounding_mode="floor").to(wide)
        periods = _FOURIER_TEMPERATURE ** (2 * exponents / self.frequencies)
        for side in grid:
            steps = torch.arange(1, side + 1, device=weight.device, dtype=wide)
            angles = (steps / (side + _FOURIER_EPSILON) * 2 * math.pi)[:, None] / periods  # (side, F)
            waves.append(torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1))
        rows, columns = waves
        features = torch.cat(
            (rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)), dim=-1
        )  # (H, W, 2F): rows first
        return self.token_projection(features.to(weight.dtype).permute(2, 0, 1).unsqueeze(0)).permute(0, 2, 3, 1)
