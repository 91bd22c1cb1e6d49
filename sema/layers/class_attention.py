"""Class attention (CaiT, arXiv 2103.17239): at the end of a network, the class token attends to the patches.

Legend: B batch, N patches, C channels, h heads, d = C / h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.counted import layer_macs
from sema.layers.mlp import Mlp
from sema.layers.tokens import split_parts
from sema.macs import Grid, Macs, linear_macs

_LAYER_NORM_EPS = 1e-6
#: The smallest ℓ1 norm by which a channel is divided; the official code uses a larger one here than in its blocks.
_L1_EPSILON = 1e-6


class ClassAttention(nn.Module):
    """Let the class token, first of (B, 1 + N, C), attend to all tokens; return only this token, (B, 1, C).

    Args:
        dim: channels C.
        num_heads: heads h.
        softmax: weights are a softmax of scaled products (XCiT); otherwise products of q and k, each channel divided by
            its ℓ1 norm over the tokens (SimA).
    """

    def __init__(self, dim: int, num_heads: int, *, softmax: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.softmax = softmax
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)  # (B, 1, L, C)
        if self.softmax:
            # Only the class token's query is used.
            dim = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            (q,) = split_parts(F.linear(x[:, :, :1], weight[:dim], bias[:dim]), 1, self.num_heads)
            k, v = split_parts(F.linear(x, weight[dim:], bias[dim:]), 2, self.num_heads)
            weights = (q * q.shape[-1] ** -0.5 * k).sum(-1).softmax(dim=-1)
        else:
            q, k, v = split_parts(self.qkv(x), 3, self.num_heads)
            q, k = (F.normalize(part, p=1.0, dim=-2, eps=_L1_EPSILON) for part in (q, k))
            weights = (q[:, :, :1] * k).sum(-1)
        gathered = weights.unsqueeze(2) @ v  # (B, h, 1, d)
        return self.proj(gathered.transpose(1, 2).flatten(2))

    def macs(self, grid: Grid) -> Macs:
        """Count the MACs on ``grid`` tokens, the class token included; products with one query are elementwise."""
        tokens, dim = grid[0] * grid[1], self.proj.in_features
        queries = 1 if self.softmax else tokens
        total = linear_macs(queries, dim, dim).plus(linear_macs(tokens, dim, 2 * dim)).plus(linear_macs(1, dim, dim))
        return total.plus(Macs(attention=tokens * dim))


class ClassAttentionBlock(nn.Module):
    """Class attention and an MLP on the class token, (B, 1 + N, C) → (B, 1 + N, C).

    As in the official code, the residuals span all tokens, so the patches change, too: each adds its norm1, scaled by
    γ1, and is then doubled (and with ``norm_all`` normalised before that).

    Args:
        dim: channels C.
        num_heads: heads h.
        softmax: see ``ClassAttention``.
        norm_all: apply norm2 to all tokens, not only to the class token.
        eta: initial γ1 and γ2.
    """

    def __init__(self, dim: int, num_heads: int, *, softmax: bool, norm_all: bool, eta: float) -> None:
        super().__init__()
        self.norm_all = norm_all
        self.norm1 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.attn = ClassAttention(dim, num_heads, softmax=softmax)
        self.norm2 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.gamma1 * torch.cat((self.attn(normed), normed[:, 1:]), dim=1)
        x = self.norm2(x) if self.norm_all else torch.cat((self.norm2(x[:, :1]), x[:, 1:]), dim=1)
        return x + torch.cat((self.gamma2 * self.mlp(x[:, :1]), x[:, 1:]), dim=1)

    def last(self, x: Tensor) -> Tensor:
        """Return only the class token, (B, 1, C): nothing reads the patches after the last block."""
        x = self.norm2(x[:, :1] + self.gamma1 * self.attn(self.norm1(x)))
        return x + self.gamma2 * self.mlp(x)

    def macs(self, grid: Grid) -> Macs:
        return self.attn.macs(grid).plus(layer_macs(self.mlp, (1, 1))[0])
