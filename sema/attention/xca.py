"""Cross-covariance attention (XCA): softmax over channels instead of tokens.

Paper: XCiT: Cross-Covariance Image Transformers, arXiv 2106.09681.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation, per head, with every channel of Q and K divided by its ℓ2 norm over the tokens and a learned temperature τ:

    out = V softmax(K̂ᵀ Q̂ · τ)      (the softmax runs over the channels of K̂)

Complexity: 3NC² for the projections, 2NC·d for the products; linear in N.

Deviations from the paper: none. As in the official code, τ multiplies the products and starts at 1, and a norm below
1e-12 counts as 1e-12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sema.attention.base import QkvAttention
from sema.layers.tokens import merge_heads, wide_dtype
from sema.macs import Grid, Macs

_EPSILON = 1e-12


class CrossCovarianceAttention(QkvAttention):
    """Softmax attention between channels, over all tokens; linear in tokens (XCiT)."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)  # (B, h, N, d)
        # Dividing the d×d products by both norms saves two passes over the tokens.
        norms = [_l2_over_tokens(part) for part in (q, k)]  # (B, h, 1, d)
        products = (q.transpose(-2, -1) @ k).to(norms[0].dtype) / (norms[0].transpose(-2, -1) * norms[1])
        weights = (products * self.temperature).softmax(dim=-1).to(v.dtype)  # (B, h, d, d)
        return merge_heads(v @ weights.transpose(-2, -1), (x.shape[1], x.shape[2]))

    def reference(self, x: Tensor) -> Tensor:
        """Normalise every channel over the tokens, then attend from channel to channel."""
        q, k, v = (part.transpose(-2, -1) for part in self.heads(x))  # (B, h, d, N)
        q, k = (part / part.square().sum(dim=-1, keepdim=True).sqrt().clamp(min=_EPSILON) for part in (q, k))
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return merge_heads((weights @ v).transpose(-2, -1), (x.shape[1], x.shape[2]))

    def macs(self, grid: Grid) -> Macs:
        return self.projection_macs(grid).plus(Macs(attention=2 * grid[0] * grid[1] * self.dim * self.head_dim))


def _l2_over_tokens(x: Tensor) -> Tensor:
    """Compute the ℓ2 norm of each channel over the tokens, (B, h, N, d) → (B, h, 1, d), in float32 or wider."""
    # vector_norm is 3 to 8 times slower on CPUs. Clamp before the root, whose slope at 0 is infinite.
    return x.to(wide_dtype(x)).square().sum(dim=-2, keepdim=True).clamp(min=_EPSILON**2).sqrt()
