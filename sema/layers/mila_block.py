"""MILA's block (arXiv 2405.16605) around any attention.

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.layers.conv import DepthwiseConv2d
from sema.layers.drop_path import DropPath
from sema.layers.mlp import Mlp
from sema.layers.positions import ConditionalPositionalEncoding
from sema.macs import Grid, Macs, linear_macs, total_macs


class Block(nn.Module):
    """MILA's block, (B, H, W, C) → (B, H, W, C), around an attention."""

    def __init__(self, dim: int, attention: Attention, *, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.cpe1 = ConditionalPositionalEncoding(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, dim)
        self.act_proj = nn.Linear(dim, dim)
        self.dwc = DepthwiseConv2d(dim)
        self.attn = attention
        self.out_proj = nn.Linear(dim, dim)
        self.cpe2 = ConditionalPositionalEncoding(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cpe1(x)
        normed = self.norm1(x)
        mixed = self.attn(F.silu(self.dwc(self.in_proj(normed))))
        x = x + self.drop_path(self.out_proj(mixed * F.silu(self.act_proj(normed))))
        x = x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on one map of ``grid`` tokens."""
        tokens, dim = grid[0] * grid[1], self.in_proj.in_features
        return total_macs(
            self.cpe1.macs(grid),
            linear_macs(tokens, dim, 3 * dim),  # in_proj, act_proj, out_proj
            self.dwc.macs(grid),
            self.attn.macs(grid),
            self.cpe2.macs(grid),
            self.mlp.macs(tokens),
        )
