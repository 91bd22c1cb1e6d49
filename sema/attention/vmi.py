"""VMI-SA: the token mixing of VMINet, one weighted sum of all tokens added to each.

Paper: A Separable Self-attention Inspired by the State Space Model for Computer Vision (VMINet), arXiv 2501.02040;
the equation follows the official code, yws-wxs/VMINet, which has two versions.

Legend: B batch, H W token grid, N = H·W, C channels, e expansion, s₀ = h₀·w₀ tokens of the base grid.

Equation, with linear maps f1, f2: C → eC and g: eC → C, learned weights w over the tokens and two learned factors a:

    x = ReLU6(f1(u)) · f2(u)
    out_i = g(ReLU6(a₀ Σ_j w_j x_j + a₁ x_i))

With ``masked``, as in version 2.0 (mask-based rank enhancement), channel c of the eC sums only the tokens j ≥ c, in
reading order; a channel c ≥ N sums nothing. The sums of two channels then differ in more than x.

Complexity: 3eNC² for the projections, eNC for the sum; linear in N.

Deviations from the paper: without ``masked`` this is version 1, which has no mask. w is stored for a base grid, as in
the official code, which works only at that grid. At any other grid the map of weights is interpolated bilinearly and
multiplied by s₀/N, so the sum keeps its size. Each token takes the mask of the base grid's token that contains its
centre. The depthwise convolution before and the batch norm after belong to VMINet's block, not to the attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.layers.conv import Pointwise
from sema.layers.positions import stored_grid
from sema.layers.table_cache import TableCache
from sema.layers.tokens import wide_dtype
from sema.macs import Grid, Macs, linear_macs


class TokenSum(nn.Linear):
    """The weights of a sum over the tokens of any grid; stored for ``token_grid`` (H, W), interpolated to others.

    With ``masked``, channel c sums only the tokens from index c of the stored grid on.
    """

    def __init__(self, token_grid: Grid, *, masked: bool = False) -> None:
        super().__init__(token_grid[0] * token_grid[1], 1, bias=False)
        self.token_grid = token_grid
        self.masked = masked
        self._table_cache = TableCache[Tensor]()

    def reset_parameters(self) -> None:
        """Draw the weights as the official code does."""
        nn.init.trunc_normal_(self.weight, std=0.02)

    def visible(self, x: Tensor) -> Tensor:
        """Flatten a map to tokens, zero where a channel does not sum them: (B, H, W, eC) → (B, N, eC)."""
        grid, tokens = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        if not self.masked:
            return tokens
        stored = self.stored_grid(grid)
        if grid == stored:
            return tokens.tril()
        rows, columns = (
            (2 * torch.arange(side, device=x.device) + 1) * base // (2 * side)
            for side, base in zip(grid, stored, strict=True)
        )
        under = (rows[:, None] * stored[1] + columns).view(-1, 1)  # the stored token under each centre
        return tokens.masked_fill(under < torch.arange(x.shape[-1], device=x.device), 0)

    def weights(self, grid: Grid) -> Tensor:
        """Interpolate the weights to the tokens of ``grid``: (1, N); the last ones are cached in eval mode."""
        if grid == self.stored_grid(grid):
            return self.weight
        return self._table_cache((self.weight,), grid, self._interpolated, training=self.training)

    def stored_grid(self, live: Grid) -> Grid:
        """Infer the grid of the stored weights, which a checkpoint may have changed."""
        return stored_grid(self.weight.shape[1], self.token_grid, live)

    def fit_stored(self, name: str, stored: Tensor) -> Tensor | None:
        """Accept weights for another grid, see ``sema.checkpoint_layout``."""
        return stored if name == "weight" and stored.ndim == 2 and stored.shape[0] == 1 else None

    def _interpolated(self, grid: Grid) -> Tensor:
        stored = self.stored_grid(grid)
        base = self.weight.reshape(1, 1, *stored).to(wide_dtype(self.weight))
        scale = (stored[0] * stored[1]) / (grid[0] * grid[1])
        return F.interpolate(base, size=grid, mode="bilinear", align_corners=False).reshape(1, -1) * scale


class VmiAttention(Attention):
    """Gated projection plus one learned weighted sum of all tokens; linear in tokens (VMINet).

    Args:
        num_heads: must divide ``dim``, as for every attention; the mechanism has no heads, so it changes nothing.
        token_grid: (H, W) for which the weights of the sum are stored; they are interpolated to any other grid.
        expansion: e, the factor by which f1 and f2 widen the channels.
        masked: leave the first c tokens out of the sum of channel c, as in version 2.0.
    """

    uses_token_grid = True

    def __init__(
        self, dim: int, num_heads: int, *, token_grid: Grid = (14, 14), expansion: int = 1, masked: bool = False
    ) -> None:
        super().__init__(dim, num_heads)
        if min(token_grid) < 1 or expansion < 1:
            raise ValueError(f"token_grid and expansion must be positive; got {token_grid} and {expansion}")
        self.hidden_dim = expansion * dim
        self.f1 = Pointwise(dim, self.hidden_dim)
        self.f2 = Pointwise(dim, self.hidden_dim)
        self.sum = TokenSum((token_grid[0], token_grid[1]), masked=masked)
        self.stack = nn.Parameter(torch.ones(2))
        self.g = Pointwise(self.hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.g(add_token_sum(F.relu6(self.f1(x)) * self.f2(x), self.sum, self.stack))

    def reference(self, x: Tensor) -> Tensor:
        """Interpolate the weights by definition, and add up the weighted tokens that each channel sees."""
        height, width = x.shape[1:3]
        hidden = self.f1(x).clamp(0, 6) * self.f2(x)
        base = self.sum.weight.reshape(self.sum.stored_grid((height, width)))
        # Separable: the weight of a row (column) is shared between the two nearest rows (columns) of the base grid.
        across = [_share(side, base_side).to(base) for side, base_side in zip((height, width), base.shape, strict=True)]
        weights = across[0] @ base @ across[1].T * (base.numel() / (height * width))
        visible = hidden
        if self.sum.masked:
            sides = zip((height, width), base.shape, strict=True)
            rows, columns = ([int((i + 0.5) * base_side / side) for i in range(side)] for side, base_side in sides)
            under = torch.tensor([[row * base.shape[1] + column for column in columns] for row in rows])
            visible = hidden * (under[..., None] >= torch.arange(self.hidden_dim))
        total = (weights[:, :, None] * visible).sum(dim=(1, 2), keepdim=True)
        mixed = self.stack[0] * total + self.stack[1] * hidden
        return self.g(mixed.clamp(0, 6))

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        return linear_macs(tokens, self.dim, 3 * self.hidden_dim).plus(Macs(attention=tokens * self.hidden_dim))

    def extra_repr(self) -> str:
        return f"token_grid={self.sum.token_grid}, masked={self.sum.masked}"


def add_token_sum(x: Tensor, token_sum: TokenSum, stack: Tensor) -> Tensor:
    """Compute ReLU6(a₀ Σ_j w_j x_j + a₁ x_i): (B, H, W, eC) → the same shape; ``stack`` holds a₀ and a₁."""
    weights = token_sum.weights((x.shape[1], x.shape[2])).to(x.dtype)
    total = weights @ token_sum.visible(x)  # (1, N) @ (B, N, eC) = (B, 1, eC)
    of_sum, of_token = stack.to(x.dtype)  # autocast would compute in the wider of their dtypes
    return F.relu6(torch.addcmul(of_sum * total.unsqueeze(1), x, of_token), inplace=True)


def _share(side: int, base_side: int) -> Tensor:
    """Make the matrix (side, base_side) of linear interpolation between pixel centres, clamped at the edges."""
    share = torch.zeros(side, base_side, dtype=torch.float64)
    for i in range(side):
        position = max((i + 0.5) * base_side / side - 0.5, 0.0)
        low = min(int(position), base_side - 1)
        high = min(low + 1, base_side - 1)
        share[i, low] += 1.0 - (position - low)
        share[i, high] += position - low
    return share
