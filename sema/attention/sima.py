"""SimA: attention without softmax; queries and keys are normalised over the tokens.

Paper: SimA: Simple Softmax-free Attention for Vision Transformers, arXiv 2206.08898.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation, per head: every channel of Q and of K is divided by its ℓ1 norm over the tokens,

    Q̂_ic = Q_ic / Σ_j |Q_jc|,   K̂_ic = K_ic / Σ_j |K_jc|,   out = Q̂ K̂ᵀ V

Complexity: 3NC² for the projections; 2N²C for the products as (Q̂K̂ᵀ)V, used if N < d, or 2NdC as Q̂(K̂ᵀV);
linear in N on any larger grid.

Deviations from the paper: none. As in the paper, products are not scaled and a norm below 1e-12 counts as 1e-12.
"""

from __future__ import annotations

from torch import Tensor

from sema.attention.base import QkvAttention
from sema.layers.tokens import chosen_rows, merge_heads, wide_dtype
from sema.macs import Grid, Macs

#: The smallest ℓ1 norm by which a channel is divided.
EPSILON = 1e-12

_PRODUCT_ORDERS = ("auto", "quadratic", "linear")


class SimaAttention(QkvAttention):
    """Softmax-free attention, q and k ℓ1-normalised over tokens; linear in tokens (SimA).

    ``product_order``: ``quadratic`` is (Q̂K̂ᵀ)V, ``linear`` is Q̂(K̂ᵀV), ``auto`` picks the one with fewer MACs:
    quadratic if N < d. All give the same output.
    """

    def __init__(self, dim: int, num_heads: int, *, product_order: str = "auto", qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        if product_order not in _PRODUCT_ORDERS:
            raise ValueError(f"product_order must be one of {', '.join(_PRODUCT_ORDERS)}; got {product_order!r}")
        self.product_order = product_order

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        q, k, v = self.heads(x)  # (B, h, N, d)
        q_norm, k_norm = (l1_over_tokens(part) for part in (q, k))  # (B, h, 1, d)
        if self.is_quadratic(grid):
            out = (q / q_norm).to(v.dtype) @ (k / k_norm).to(v.dtype).transpose(-2, -1) @ v
        else:
            # Dividing the d×d summary by q's norm saves a pass over the tokens. k is divided by its norm first,
            # so that the sum over tokens is of order one in half precision.
            summary = ((k / k_norm).to(v.dtype).transpose(-2, -1) @ v) / q_norm.transpose(-2, -1)
            out = q @ summary.to(v.dtype)
        return merge_heads(out, grid)

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = self.heads(x)
        q, k = (part / part.abs().sum(dim=-2, keepdim=True).clamp(min=EPSILON) for part in (q, k))
        return chosen_rows(q, rows) @ k.transpose(-2, -1)

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        attention = 2 * tokens * self.dim * (tokens if self.is_quadratic(grid) else self.head_dim)
        return self.projection_macs(grid).plus(Macs(attention=attention))

    def extra_repr(self) -> str:
        return f"product_order={self.product_order}"

    def is_quadratic(self, grid: Grid | None) -> bool:
        """Check whether the order of the products on ``grid`` is (Q̂K̂ᵀ)V; None: on a large grid."""
        is_small = grid is not None and grid[0] * grid[1] < self.head_dim
        return self.product_order == "quadratic" or (self.product_order == "auto" and is_small)


def l1_over_tokens(x: Tensor) -> Tensor:
    """Compute the ℓ1 norm of each channel over the tokens, (B, h, N, d) → (B, h, 1, d), in float32 or wider."""
    # vector_norm is 3 to 8 times slower on CPUs.
    return x.abs().sum(dim=-2, keepdim=True, dtype=wide_dtype(x)).clamp(min=EPSILON)
