"""Pool the tokens of an image into one vector for the classifier.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h.

- mean: as in most backbones; each token has weight 1/N.
- max: each channel's maximum over all tokens; a single token does not fade as the image grows.
- attention: each head weights the tokens by a softmax of their scores, Σ_n softmax_n(w_h·x_n) x_n (attention-based
  pooling, Ilse et al., arXiv 1802.04712, without its gate; h heads as in Lee et al., arXiv 1810.00825).
"""

from __future__ import annotations

from torch import Tensor, nn

from sema.layers.tokens import split_heads, token_mean
from sema.macs import Grid, Macs, linear_macs

POOLINGS = ("mean", "max", "attention")
#: All heads: these, and the one in ``sema.layers.segmentation``.
HEADS = (*POOLINGS, "fpn")


class Pooling(nn.Module):
    """(B, H, W, C) → (B, C)."""

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Count the MACs on a map of ``grid`` tokens; also return the grid of the result, one token."""
        return Macs(), (1, 1)


class MeanPooling(Pooling):
    """(B, H, W, C) → (B, C), the mean over the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return token_mean(x).flatten(1)


class MaxPooling(Pooling):
    """Take each channel's maximum over the tokens: (B, H, W, C) → (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(1, 2))


class AttentionPooling(Pooling):
    """(B, H, W, C) → (B, C), each head's tokens weighted by a softmax of learned scores.

    Args:
        dim: channels C.
        num_heads: heads h; must divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.score = nn.Linear(dim, num_heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.score(x).flatten(1, 2).softmax(dim=1)  # (B, N, h)
        pooled = weights.transpose(1, 2).unsqueeze(2) @ split_heads(x, self.num_heads)  # (B, h, 1, d)
        return pooled.flatten(1)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        tokens, dim = grid[0] * grid[1], self.score.in_features
        return linear_macs(tokens, dim, self.num_heads).plus(Macs(attention=tokens * dim)), (1, 1)


def create_pooling(name: str, *, dim: int, num_heads: int) -> Pooling:
    """Build a pooling by name; ValueError for an unknown one."""
    if name == "attention":
        return AttentionPooling(dim, num_heads)
    if name not in POOLINGS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}; got {name!r}")
    return MeanPooling() if name == "mean" else MaxPooling()
