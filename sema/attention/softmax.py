"""Softmax attention over all tokens.

Paper: Attention Is All You Need, arXiv 1706.03762; on image tokens: ViT, arXiv 2010.11929.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation: out = softmax(s QKᵀ) V, per head, s = 1/√d.

Complexity: 3NC² for the projections, 2N²C for the products; quadratic in N.

Deviations from the paper: none. The products run in ``F.scaled_dot_product_attention``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sema.attention.base import QkvAttention
from sema.layers.tokens import chosen_rows, merge_heads
from sema.macs import Grid, Macs


class SoftmaxAttention(QkvAttention):
    """Softmax attention over all tokens, fused; quadratic in tokens (ViT, DeiT).

    ``scale`` is the factor s of the scores; None is 1/√d.
    """

    def __init__(self, dim: int, num_heads: int, *, scale: float | None = None, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.scale = self.head_dim**-0.5 if scale is None else float(scale)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        return merge_heads(F.scaled_dot_product_attention(q, k, v, scale=self.scale), (x.shape[1], x.shape[2]))

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = self.heads(x)
        weights = (self.scale * chosen_rows(q, rows) @ k.transpose(-2, -1)).exp()
        return weights / weights.sum(dim=-1, keepdim=True)

    def macs(self, grid: Grid) -> Macs:
        return self.projection_macs(grid).plus(Macs(attention=2 * (grid[0] * grid[1]) ** 2 * self.dim))

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"
