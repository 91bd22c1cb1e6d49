"""The contract of an attention.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h head dim.

An attention mixes tokens: (B, H, W, C) → (B, H, W, C) at any H×W. It owns its query, key and value
projections; the projection of its *output* belongs to the block around it, so that one block
serves every mechanism and a swap changes the mechanism and nothing else.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from sema.layers.tokens import merge_heads, split_parts
from sema.macs import Grid, Macs, linear_macs


class Attention(nn.Module):
    """Base of every attention; subclasses give ``forward``, ``reference`` and ``macs``.

    Args:
        dim: channels C.
        num_heads: heads h; must divide ``dim``.

    Raises:
        ValueError: ``dim`` or ``num_heads`` is not positive, or ``num_heads`` does not divide ``dim``.
    """

    #: Whether the constructor takes ``token_grid``, the (H, W) at which parameters tied to positions are stored.
    uses_token_grid: ClassVar[bool] = False

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

    @property
    def has_coefficients(self) -> bool:
        """Whether the output is a weighting of values by a matrix, which ``coefficients`` gives."""
        return type(self).coefficients is not Attention.coefficients

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


class QkvAttention(Attention):
    """Base of attentions with one projection to q, k and v, whose ``coefficients`` weigh v.

    Args:
        dim: channels C.
        num_heads: heads h.
        qkv_bias: whether the projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Project ``x`` (B, H, W, C) to q, k and v, each (B, h, N, d)."""
        return split_parts(self.qkv(x), 3, self.num_heads)

    def values(self, x: Tensor) -> Tensor:
        return self.heads(x)[2]

    def reference(self, x: Tensor) -> Tensor:
        """Weigh the values by the stored N×N matrix."""
        return merge_heads(self.coefficients(x) @ self.values(x), (x.shape[1], x.shape[2]))

    def projection_macs(self, grid: Grid) -> Macs:
        """Return the MACs of the projection on ``grid`` tokens."""
        return linear_macs(grid[0] * grid[1], self.dim, 3 * self.dim)
