"""Linear attention with the feature map ELU + 1.

Paper: Transformers are RNNs, arXiv 2006.16236.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation, per head, φ(x) = ELU(x) + 1, k̄ = (1/N) Σ_j φ(k_j):

    out_i = φ(q_i) [(1/N) Σ_j φ(k_j)ᵀ v_j] / (φ(q_i)·k̄ + ε),  ε = 1e-6

Complexity: 3NC² for the projections, 2NdC + NC for the products; linear in N.

Deviations from the paper: both sums are divided by N. This changes only the weight of ε, which is then the same at
every image size. The paper has no ε; it guards against an underflowing denominator.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sema.attention.base import QkvAttention
from sema.layers.tokens import chosen_rows, merge_heads, split_parts, token_mean
from sema.macs import Grid, Macs

#: Added to the denominator, which is a mean over the tokens.
EPSILON = 1e-6


class LinearAttention(QkvAttention):
    """Linear attention with φ = ELU + 1, normalised; linear in tokens."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1] * x.shape[2]
        qkv = self.qkv(x)
        features = elu_plus_one(qkv[..., : 2 * self.dim])  # φ(q), φ(k) in one pass
        q, k = split_parts(features, 2, self.num_heads)
        (v,) = split_parts(qkv[..., 2 * self.dim :], 1, self.num_heads)
        (k_mean,) = split_parts(token_mean(features[..., self.dim :]), 1, self.num_heads)  # (B, h, 1, d)
        # n^-1/2 on either side of the sum over tokens, so that half precision neither overflows nor underflows.
        summary = (k * tokens**-0.5).transpose(-2, -1) @ v * tokens**-0.5  # (B, h, d, d)
        out = q @ summary / (q @ k_mean.transpose(-2, -1) + EPSILON)
        return merge_heads(out, (x.shape[1], x.shape[2]))

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = self.heads(x)
        weights = (F.elu(chosen_rows(q, rows)) + 1.0) @ (F.elu(k) + 1.0).transpose(-2, -1)
        return weights / (weights.sum(dim=-1, keepdim=True) + EPSILON * weights.shape[-1])

    def macs(self, grid: Grid) -> Macs:
        return self.projection_macs(grid).plus(Macs(attention=grid[0] * grid[1] * self.dim * (2 * self.head_dim + 1)))


def elu_plus_one(x: Tensor) -> Tensor:
    """Compute φ(x) = ELU(x) + 1 as exp(min(x, 0)) + max(x, 0).

    In torch 2.14 ``F.elu`` takes 12 times as long (float32, one thread of an AMD EPYC); in half precision, adding 1 to
    its result loses the digits of small values.
    """
    return x.clamp(max=0).exp_() + x.relu()
