"""VMI-SA: the token mixing of VMINet, one weighted sum of all tokens added to each.

Paper: A Separable Self-attention Inspired by the State Space Model for Computer Vision (VMINet), arXiv 2501.02040;
the equation follows the official code, yws-wxs/VMINet.

Legend: B batch, H W token grid, N = H·W, C channels, e expansion, s₀ = h₀·w₀ tokens of the base grid.

Equation, with linear maps f1, f2: C → eC and g: eC → C, learned weights w over the tokens and two learned factors a:

    x = ReLU6(f1(u)) · f2(u)
    out_i = g(ReLU6(a₀ Σ_j w_j x_j + a₁ x_i))

Complexity: 3eNC² for the projections, eNC for the sum; linear in N.

Deviations from the paper: w is stored for a base grid, as in the official code, which works at that grid alone. At
another grid the map of weights is interpolated bilinearly and multiplied by s₀/N, so that the sum keeps its size. The
depthwise convolution before and the batch norm after belong to VMINet's block, not to the attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.layers.conv import Pointwise
from sema.layers.kept import KeptTable
from sema.layers.positions import stored_grid
from sema.macs import Grid, Macs, linear_macs


class VmiAttention(Attention):
    """Gated projection plus one learned weighted sum of all tokens; linear in tokens (VMINet).

    Args:
        dim: channels C.
        num_heads: as every attention takes it; the mechanism has no heads, so it changes nothing.
        token_grid: (H, W) for which the weights of the sum are stored; any other grid interpolates them.
        expansion: e, the factor by which f1 and f2 widen the channels.

    Raises:
        ValueError: ``token_grid`` or ``expansion`` is not positive.
    """

    uses_token_grid = True

    def __init__(self, dim: int, num_heads: int, *, token_grid: Grid = (14, 14), expansion: int = 1) -> None:
        super().__init__(dim, num_heads)
        if min(token_grid) < 1 or expansion < 1:
            raise ValueError(f"token_grid and expansion must be positive; got {token_grid} and {expansion}")
        self.token_grid = (token_grid[0], token_grid[1])
        self.hidden_dim = expansion * dim
        self.f1 = Pointwise(dim, self.hidden_dim)
        self.f2 = Pointwise(dim, self.hidden_dim)
        self.sum = nn.Linear(token_grid[0] * token_grid[1], 1, bias=False)
        self.stack = nn.Parameter(torch.ones(2))
        self.g = Pointwise(self.hidden_dim, dim)
        self._kept = KeptTable[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        x = F.relu6(self.f1(x)) * self.f2(x)  # (B, H, W, eC)
        total = self.token_weights(grid).to(x.dtype) @ x.flatten(1, 2)  # (1, N) @ (B, N, eC) = (B, 1, eC)
        x = self.stack[0] * total.unsqueeze(1) + self.stack[1] * x
        return self.g(F.relu6(x))  # type: ignore[no-any-return]

    def token_weights(self, grid: Grid) -> Tensor:
        """Return the weights of the sum over the tokens of ``grid``: (1, N); the last ones are kept in eval mode."""
        weight = self.sum.weight
        if grid == self._stored_grid(grid):
            return weight
        return self._kept((weight,), grid, self._interpolated, training=self.training)

    def fit_stored(self, name: str, stored: Tensor) -> Tensor:
        """Accept the weights of a sum over another grid, see ``sema.checkpoint_layout``.

        Raises:
            ValueError: not the weights of one sum.
        """
        if name != "sum.weight" or stored.ndim != 2 or stored.shape[0] != 1:
            raise ValueError(f"{tuple(stored.shape)} in the checkpoint is not what {name} holds")
        return stored

    def _stored_grid(self, live: Grid) -> Grid:
        return stored_grid(self.sum.weight.shape[1], self.token_grid, live)

    def _interpolated(self, grid: Grid) -> Tensor:
        weight, stored = self.sum.weight, self._stored_grid(grid)
        scale = (stored[0] * stored[1]) / (grid[0] * grid[1])
        base = weight.reshape(1, 1, *stored)
        base = base if base.dtype == torch.float64 else base.float()
        return F.interpolate(base, size=grid, mode="bilinear", align_corners=False).reshape(1, -1) * scale

    def reference(self, x: Tensor) -> Tensor:
        """Interpolate the weights from their definition and add up the tokens one by one."""
        height, width = x.shape[1:3]
        hidden = self.f1(x).clamp(0, 6) * self.f2(x)
        base = self.sum.weight.reshape(self._stored_grid((height, width)))
        # Separable: the weight of a row (column) is shared between the two nearest rows (columns) of the base grid.
        across = [_share(side, base_side).to(base) for side, base_side in zip((height, width), base.shape, strict=True)]
        weights = across[0] @ base @ across[1].T * (base.numel() / (height * width))
        total = torch.zeros_like(hidden[:, 0, 0])
        for row in range(height):
            for column in range(width):
                total = total + weights[row, column] * hidden[:, row, column]
        mixed = self.stack[0] * total[:, None, None] + self.stack[1] * hidden
        return self.g(mixed.clamp(0, 6))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        projection = linear_macs(tokens, self.dim, 2 * self.hidden_dim)
        projection = projection.plus(linear_macs(tokens, self.hidden_dim, self.dim))
        return projection.plus(Macs(attention=tokens * self.hidden_dim))

    def extra_repr(self) -> str:
        return f"token_grid={self.token_grid}"


def _share(side: int, base_side: int) -> Tensor:
    """Matrix (side, base_side) of linear interpolation between pixel centres, clamped at the edges."""
    share = torch.zeros(side, base_side, dtype=torch.float64)
    for i in range(side):
        position = max((i + 0.5) * base_side / side - 0.5, 0.0)
        low = min(int(position), base_side - 1)
        high = min(low + 1, base_side - 1)
        share[i, low] += 1.0 - (position - low)
        share[i, high] += position - low
    return share
