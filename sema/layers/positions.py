"""Positional terms for any grid: rotations (RoPE), convolutions (LePE, CPE), learned tables, Fourier features.

Legend: B batch, H W token grid, N = H·W, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sema.layers.conv import DepthwiseConv2d
from sema.layers.table_cache import TableCache
from sema.layers.tokens import wide_dtype
from sema.macs import Grid, Macs

_ROPE_BASE = 1e4
_FOURIER_TEMPERATURE = 10_000
_FOURIER_FREQUENCIES = 32
_FOURIER_EPSILON = 1e-6


class LocallyEnhancedPositionalEncoding(DepthwiseConv2d):
    """LePE (arXiv 2107.00652): a depthwise 3×3 convolution of the values, added to the output of the attention."""


class ConditionalPositionalEncoding(DepthwiseConv2d):
    """x + CPE(x), where CPE (arXiv 2102.10882) is a depthwise 3×3 convolution of a block's input.

    In inference, one convolution computes the sum and saves a pass over the map, unless TF32 would round x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self._table_cache = TableCache[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        rounds = x.dtype == torch.float32 and x.device.type == "cuda" and torch.backends.cudnn.allow_tf32
        if rounds or not self._table_cache.may_cache((self.weight,), training=self.training):
            return x + super().forward(x)
        weight = self._table_cache.cached((self.weight,), (3, 3), self._plus_identity)
        return self._conv_forward(x.permute(0, 3, 1, 2), weight, self.bias).permute(0, 2, 3, 1)

    def reference(self, x: Tensor) -> Tensor:
        return x + super().reference(x)

    def _plus_identity(self, kernel: Grid) -> Tensor:
        weight = self.weight.clone()
        weight[:, :, kernel[0] // 2, kernel[1] // 2] += 1.0
        return weight


def over_grid(rows: Tensor, columns: Tensor) -> Tensor:
    """Spread a table (H, K) of the rows and one (W, K) of the columns over the grid: (H, W, 2K), rows first."""
    grid = (rows.shape[0], columns.shape[0])
    return torch.cat((rows[:, None].expand(*grid, -1), columns[None].expand(*grid, -1)), dim=-1)


def rope_table(
    function: Callable[[Tensor], Tensor], grid: Grid, dim: int, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Apply ``function`` to the rotation angles of 2-D RoPE (arXiv 2104.09864, axial as in MILA): (H, W, C/2).

    Channels (2i, 2i+1) form pair i. With K = C/4 and θ_k = 10⁴^(−k/K), pair k < K turns by row·θ_k and pair K + k
    by column·θ_k, in radians. Sines for H + W rows cost nothing compared with the H·W of a full table.

    Args:
        function: elementwise.
        grid: (H, W); the angles come from the input's grid, so no size is built in.
        dim: C; a multiple of 4.
        device, dtype: of the angles; float32 or wider, because half-precision angles are off by radians on large grids.
    """
    rows, columns = (function(rope_angles(side, dim, device=device, dtype=dtype)) for side in grid)
    return over_grid(rows, columns)


def rope_angles(side: int, dim: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute the angles position·θ_k of the positions along one side: (side, C/4); see ``rope_table``."""
    steps = torch.arange(dim // 4, device=device, dtype=dtype)
    theta = torch.pow(_ROPE_BASE, -steps / (dim // 4))
    return torch.arange(side, device=device, dtype=dtype)[:, None] * theta


def rotate_positions(x: Tensor) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, H, W, …, C) by the angles of their positions; half precision gives float32.

    Multiplies complex numbers: one pass over ``x``, four times faster on a CPU than the four strided products of real
    arithmetic (58 against 230 µs for 56×56×128). In bfloat16, conversion included, it is four to ten times faster (two
    threads of an AMD EPYC with AVX-512, 7×7×1024 to 112×112×128).
    Compilers have no code for complex numbers and use real arithmetic.
    """
    if torch.compiler.is_compiling():
        return rotate_written_out(x)
    grid, dim, dtype = (x.shape[1], x.shape[2]), x.shape[-1], wide_dtype(x)
    real_tensors = type(x) is Tensor and x.device.type != "meta"  # a tracer's tensors must not outlive it
    turns = _cached_turns if real_tensors else _turns
    turn = turns(grid, dim, x.device, dtype, torch.is_inference_mode_enabled())
    turn = turn.view(*grid, *(1,) * (x.ndim - 4), dim // 2)
    pairs = torch.view_as_complex(torch.unflatten(x.to(dtype), -1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2)


def rotate_written_out(x: Tensor) -> Tensor:
    """Rotate the channel pairs of ``x`` (B, H, W, …, C) in real arithmetic, in float32 or wider."""
    grid, dim, dtype = (x.shape[1], x.shape[2]), x.shape[-1], wide_dtype(x)
    even, odd = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    tables = (rope_table(function, grid, dim, device=x.device, dtype=dtype) for function in (torch.cos, torch.sin))
    cos, sin = (table.view(*grid, *(1,) * (x.ndim - 4), dim // 2) for table in tables)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def _turns(grid: Grid, dim: int, device: torch.device, dtype: torch.dtype, inference: bool) -> Tensor:
    """Make the complex rotation of every position, (H, W, C/2)."""
    return rope_table(lambda angle: torch.polar(torch.ones_like(angle), angle), grid, dim, device=device, dtype=dtype)


#: The official code stores the rotation for its one size; computing it in each block cost MILA-T 1 % of its time.
#: ``inference`` is part of the key, because autograd refuses tensors that were made in inference mode.
_cached_turns = functools.lru_cache(maxsize=8)(_turns)


def stored_grid(count: int, built: Grid, live: Grid | None = None) -> Grid:
    """Return the grid of a table of ``count`` positions: ``built`` if it has as many, else a square, else ``live``.

    A checkpoint may store its table at a different size from the model's; it is then interpolated from that size to
    each input, once instead of twice.

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


class FourierPositions(nn.Module):
    """Fourier features of positions, projected to channels (XCiT, arXiv 2106.09681): the encoding (1, H, W, C).

    Positions run from 1/H and 1/W to 1, so all sizes share one scale; F frequencies encode each side. The last
    encoding is cached in eval mode; the official code computes it at every forward pass.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(2 * _FOURIER_FREQUENCIES, dim, 1)
        self._table_cache = TableCache[Tensor]()

    def forward(self, grid: Grid) -> Tensor:
        # The features are constants, so a cached encoding stays right as long as these two parameters do not change.
        weight, bias = self.token_projection.weight, self.token_projection.bias
        assert bias is not None
        return self._table_cache((weight, bias), grid, self._encoding, training=self.training)

    def macs(self, grid: Grid) -> Macs:
        """Count the MACs of making the encoding of ``grid``, which the official code does for every image."""
        return Macs(convolution=grid[0] * grid[1] * self.token_projection.weight.numel())

    def _encoding(self, grid: Grid) -> Tensor:
        weight = self.token_projection.weight
        wide = wide_dtype(weight)
        waves = []
        exponents = torch.arange(_FOURIER_FREQUENCIES, device=weight.device).div(2, rounding_mode="floor").to(wide)
        periods = _FOURIER_TEMPERATURE ** (2 * exponents / _FOURIER_FREQUENCIES)
        for side in grid:
            steps = torch.arange(1, side + 1, device=weight.device, dtype=wide)
            angles = (steps / (side + _FOURIER_EPSILON) * 2 * math.pi)[:, None] / periods  # (side, F)
            waves.append(torch.stack((angles[:, 0::2].sin(), angles[:, 1::2].cos()), dim=-1).flatten(1))
        features = over_grid(*waves)  # (H, W, 2F)
        return self.token_projection(features.to(weight.dtype).permute(2, 0, 1).unsqueeze(0)).permute(0, 2, 3, 1)
