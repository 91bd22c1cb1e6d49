"""The contract of an attention.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h head dim.

An attention mixes tokens: (B, H, W, C) → (B, H, W, C) at any H×W. It owns its query, key and value
projections; the projection of its *output* belongs to the block around it, so that one block
serves every mechanism and a swap changes the mechanism and nothing else.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from sema.macs import Grid, Macs


class Attention(nn.Module):
    """Base of every attention; subclasses give ``forward``, ``reference`` and ``macs``.

    Args:
        dim: channels C.
        num_heads: heads h; must divide ``dim``.

    Raises:
        ValueError: ``dim`` or ``num_heads`` is not positive, or ``num_heads`` does not divide ``dim``.
    """

    #: Whether ``coefficients`` exists: the output is a weighting of values that can be written as a matrix.
    has_coefficients: bool = False
    #: Largest relative ℓ2 error of the bfloat16 forward against float64 on unit-variance input.
    bfloat16_tolerance: ClassVar[float] = 2e-2
    #: Whether the constructor takes ``token_grid``, the (H, W) at which parameters tied to positions are stored.
    uses_token_grid: ClassVar[bool] = False
    #: What every row of ``coefficients`` sums to; None where that depends on the input.
    row_sum: float | None = None

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a positive multiple of num_heads; got dim={dim}, num_heads={num_heads}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens of ``x`` (B, H, W, C); returns the same shape."""
        raise NotImplementedError

    def reference(self, x: Tensor) -> Tensor:
        """State the equation naively: same input and output as ``forward``, no thought for speed or memory."""
        raise NotImplementedError

    def macs(self, grid: Grid) -> Macs:
        """Return the multiply-accumulates of ``forward`` on one image of ``grid`` (H, W) tokens."""
        raise NotImplementedError

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the matrix (B, h, N, N) whose row i weighs ``values(x)`` to make output token i.

        Positional terms beside the mixing (LePE) are not part of it.

        Args:
            x: (B, H, W, C).
            rows: token indices; the result is (B, h, len(rows), N) then, and nothing of size N×N is made. None: all.

        Raises:
            TypeError: the mechanism has no such matrix.
        """
        raise TypeError(f"{type(self).__name__} has no coefficient matrix")

    def values(self, x: Tensor) -> Tensor:
        """Return the values (B, h, N, d) that ``coefficients`` weighs.

        Raises:
            TypeError: the mechanism has no such matrix.
        """
        raise TypeError(f"{type(self).__name__} has no coefficient matrix")


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, H, W, C) → (B, h, N, d)."""
    return torch.unflatten(x.flatten(1, 2), -1, (num_heads, -1)).transpose(1, 2)


def split_parts(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, H, W, parts·C) → ``parts`` views (B, h, N, d), such as q, k and v; nothing is copied."""
    return torch.unflatten(x.flatten(1, 2), -1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor, grid: Grid) -> Tensor:
    """(B, h, N, d) → (B, H, W, C)."""
    return torch.unflatten(x.transpose(1, 2).flatten(2), 1, grid)


def chosen_rows(x: Tensor, rows: Tensor | None, dim: int = -2) -> Tensor:
    """Return the slices ``rows`` of ``x`` along ``dim``; all of them for None."""
    return x if rows is None else x.index_select(dim, rows)


def token_mean(x: Tensor) -> Tensor:
    """Mean over the grid: (B, H, W, C) → (B, 1, 1, C), accumulated in float32 or wider whatever the dtype."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.mean(dim=(1, 2), keepdim=True, dtype=wide).to(x.dtype)
