"""MILA's linear attention: rotary positions, the input itself as values, and a local positional term.

Paper: Demystify Mamba in Vision: A Linear Attention Perspective (MILA, code name MLLA), arXiv 2405.16605.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

Equation, per head, φ(x) = ELU(x) + 1, R_i the rotation of position i, k̄ = (1/N) Σ_j φ(k_j), v = x:

    out_i = (1/N) Σ_j ⟨R_i φ(q_i), R_j φ(k_j)⟩ v_j / (φ(q_i)·k̄ + ε) + LePE(v)_i,  ε = 1e-6

The rotation acts on all C channels before the heads are split, in channel pairs (2i, 2i+1) at base 1e4. The first C/4
pairs follow the row and the rest the column. The denominator is not rotated, so the coefficients of a row do not sum
to one, and may be negative.

Complexity: 2NC² for the projections, 2NdC + NC for the products, 9NC for LePE; linear in N.

Deviations from the paper: none. The rotation follows the input's grid; the official code stores a table for one size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.attention.linear import elu_plus_one
from sema.layers.counted import layer_macs
from sema.layers.positions import LocallyEnhancedPositionalEncoding, rotate_positions
from sema.layers.tokens import chosen_rows, merge_heads, split_heads, split_parts, token_mean, wide_dtype
from sema.macs import Grid, Macs, linear_macs

#: Added to the denominator, which is a mean over the tokens.
EPSILON = 1e-6


class MilaAttention(Attention):
    """Linear attention with rotary positions and LePE, v = x; linear in tokens (MILA).

    Args:
        dim: channels C; a multiple of 4.
        num_heads: heads h; d must be even, so that no channel pair is split between two heads.
        lepe: add a depthwise 3×3 convolution of the values.
        qkv_bias: add a bias to the projection of q and k.
    """

    def __init__(self, dim: int, num_heads: int, *, lepe: bool = True, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads)
        if dim % 4 or self.head_dim % 2:
            raise ValueError(
                f"RoPE pairs channels by row and by column: dim must be a multiple of 4 and dim / num_heads even; "
                f"got dim={dim}, num_heads={num_heads}"
            )
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.lepe = LocallyEnhancedPositionalEncoding(dim) if lepe else None

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        tokens = grid[0] * grid[1]
        features = elu_plus_one(self.qk(x))  # (B, H, W, 2C): φ(q), φ(k)
        turned = rotate_positions(torch.unflatten(features, -1, (2, self.dim))).to(features.dtype)
        q_turned, k_turned = split_parts(turned.flatten(-2), 2, self.num_heads)  # (B, h, N, d)
        q, _ = split_parts(features, 2, self.num_heads)
        k_mean = split_heads(token_mean(features[..., self.dim :]), self.num_heads)  # (B, h, 1, d)
        # n^-1/2 on either side of the sum over tokens, so that half precision neither overflows nor underflows.
        summary = k_turned.transpose(-2, -1) @ split_heads(x * tokens**-0.5, self.num_heads) * tokens**-0.5
        out = q_turned @ summary / (q @ k_mean.transpose(-2, -1) + EPSILON)
        merged = merge_heads(out, grid)
        return merged if self.lepe is None else merged + self.lepe(x)

    def reference(self, x: Tensor) -> Tensor:
        """Multiply x by explicit N×N coefficients, then add LePE as a sum of shifted copies."""
        out = merge_heads(self.coefficients(x) @ self.values(x), (x.shape[1], x.shape[2]))
        return out if self.lepe is None else out + self.lepe.reference(x)

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        height, width = x.shape[1:3]
        q, k = (split_heads(F.elu(part) + 1.0, self.num_heads) for part in self.qk(x).chunk(2, dim=-1))
        normaliser = (chosen_rows(q, rows) * k.mean(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True) + EPSILON
        token = torch.arange(height * width, device=x.device, dtype=wide_dtype(x))[:, None]
        theta = 10000.0 ** (-torch.arange(self.dim // 4, device=x.device, dtype=token.dtype) / (self.dim // 4))
        turn = torch.cat(((token // width) * theta, (token % width) * theta), dim=-1)  # (N, C/2), one per channel pair
        turn = torch.unflatten(turn, -1, (self.num_heads, -1)).transpose(0, 1)
        cos, sin = turn.cos(), turn.sin()  # (h, N, d/2)
        pairs = ((part[..., 0::2], part[..., 1::2]) for part in (q, k))
        q, k = (torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1) for even, odd in pairs)
        return chosen_rows(q, rows) @ k.transpose(-2, -1) / (height * width) / normaliser

    def values(self, x: Tensor) -> Tensor:
        return split_heads(x, self.num_heads)

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        total = linear_macs(tokens, self.dim, 2 * self.dim)
        total = total.plus(Macs(attention=tokens * self.dim * (2 * self.head_dim + 1)))
        return total if self.lepe is None else total.plus(layer_macs(self.lepe, grid)[0])
