"""Positional terms that fit any grid: rotary embedding (RoPE) and depthwise convolutions (LePE, CPE).

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

import functools
import math
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


def rotate_positions(x: Tensor) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, H, W, …, C) by the angles of their positions; half precision gives float32.

    Eager float32 and float64 multiply complex numbers: one pass over ``x``, four times faster on a CPU than the four
    strided products of real arithmetic (58 against 230 µs for 56×56×128). Compilers have no code for complex
    numbers and half precision has no complex type; there the same rotation is written out.
    """
    grid, dim = (x.shape[1], x.shape[2]), x.shape[-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.dtype != dtype or torch.compiler.is_compiling():
        return rotate_written_out(x, rope_angles(grid, dim, device=x.device, dtype=dtype))
    real_tensors = type(x) is Tensor and x.device.type != "meta"  # tracers bring tensors that must not outlive them
    turns = _kept_turns if real_tensors else _turns
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
    """Return the complex rotation of every position, (H, W, C/2)."""
    angles = rope_angles(grid, dim, device=device, dtype=dtype)
    return angles.over_grid(lambda angle: torch.polar(torch.ones_like(angle), angle))


#: The official code stores the rotation, for its one size; making it anew in each block cost MILA-T 1 % of its time.
#: ``inference`` is part of the key, because autograd refuses tensors that were made in inference mode.
_kept_turns = functools.lru_cache(maxsize=8)(_turns)


def stored_grid(count: int, built: Grid, live: Grid | None = None) -> Grid:
    """Return the grid of a table of ``count`` positions: ``built`` if it has as many, else a square, else ``live``.

    A checkpoint may hold its table at another size than the model was built for; the table is then kept as it is and
    interpolated from there to each input, once instead of twice.

    Raises:
        ValueError: ``count`` is none of these, so that nobody can tell which grid the table was made for.
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
