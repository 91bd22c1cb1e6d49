"""Linear attention with the feature map ELU + 1.

Paper: Transformers are RNNs, arXiv 2006.16236.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation, per head, φ(x) = ELU(x) + 1, k̄ = (1/N) Σ_j φ(k_j):

    out_i = φ(q_i) [(1/N) Σ_j φ(k_j)ᵀ v_j] / (φ(q_i)·k̄ + ε),  ε = 1e-6

Complexity: 3NC² for the projections, 2NdC + NC for the products; linear in N.

Deviations from the paper: both sums are divided by N, which changes nothing but the weight of ε: it stays the same
at every image size. The paper has no ε; it guards against a denominator that underflows.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention, chosen_rows, merge_heads, split_parts, token_mean
from sema.macs import Grid, Macs, linear_macs

#: Added to the denominator, which is a mean over the tokens.
EPSILON = 1e-6


class LinearAttention(Attention):
    """Linear attention with φ = ELU + 1, normalised; linear in tokens.

    Args:
        dim: channels C.
        num_heads: heads h.
        qkv_bias: whether the projections have a bias.
    """

    has_coefficients = True
    row_sum = 1.0

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1] * x.shape[2]
        qkv = self.qkv(x)
        features = F.elu(qkv[..., : 2 * self.dim]) + 1.0  # φ(q), φ(k) in one pass
        q, k = split_parts(features, 2, self.num_heads)
        (v,) = split_parts(qkv[..., 2 * self.dim :], 1, self.num_heads)
        (k_mean,) = split_parts(token_mean(features[..., self.dim :]), 1, self.num_heads)  # (B, h, 1, d)
        # n^-1/2 on either side of the sum over tokens, so that half precision neither overflows nor vanishes.
        summary = (k * tokens**-0.5).transpose(-2, -1) @ v * tokens**-0.5  # (B, h, d, d)
        out = q @ summary / (q @ k_mean.transpose(-2, -1) + EPSILON)
        return merge_heads(out, (x.shape[1], x.shape[2]))

    def reference(self, x: Tensor) -> Tensor:
        """Store the N×N matrix and multiply by it."""
        return merge_heads(self.coefficients(x) @ self.values(x), (x.shape[1], x.shape[2]))

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = split_parts(self.qkv(x), 3, self.num_heads)
        weights = (F.elu(chosen_rows(q, rows)) + 1.0) @ (F.elu(k) + 1.0).transpose(-2, -1)
        return weights / (weights.sum(dim=-1, keepdim=True) + EPSILON * weights.shape[-1])

    def values(self, x: Tensor) -> Tensor:
        return split_parts(self.qkv(x), 3, self.num_heads)[2]

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        attention = tokens * self.dim * (2 * self.head_dim + 1)
        return linear_macs(tokens, self.dim, 3 * self.dim).plus(Macs(attention=attention))
