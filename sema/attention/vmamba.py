"""SS2D: VMamba's token mixing, a selective scan over the map along its rows and its columns, both ways.

Paper: VMamba, arXiv 2401.10166; Mamba, arXiv 2312.00752.

Legend: B batch, H W token grid, L = H·W, C channels, N states per channel, R rank of the step sizes, k one of the
four directions: rows, columns, rows backward, columns backward.

Equation, per direction and channel, along the tokens t in that direction's order:

    (δ, B, C)_t = W_k x_t,   Δ_t = softplus(W'_k δ_t + b_k),   A = −exp(A_log)
    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t,   y_t = C_t · h_t + D x_t
    out = LN(Σ_k y^k), each y at its token's position

Complexity: 4L·C(R + 2N) + 4L·R·C for the projections, 9·4L·C·N + 4L·C FLOPs for the scans; linear in L.

Deviations from the paper: none. As in the official code, the scan runs in float32 or wider. The projections around the
scan, and the convolution and SiLU before it, belong to the block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import ScanAttention
from sema.layers.selective_scan import scan_flops, selective_scan_reference
from sema.layers.state_space import init_step_bias, log_decay_rates
from sema.layers.tokens import wide_dtype
from sema.macs import Grid, Macs, linear_macs

_DIRECTIONS = 4


class VmambaAttention(ScanAttention):
    """Selective scans along rows and columns, both ways; linear in tokens (VMamba's SS2D).

    See ``ScanAttention`` for the options.
    """

    def __init__(
        self, dim: int, num_heads: int, *, state_dim: int = 1, dt_rank: int | None = None, scan: str = "auto"
    ) -> None:
        super().__init__(dim, num_heads, state_dim=state_dim, dt_rank=dt_rank, scan=scan)
        rank = self.dt_rank
        self.x_proj_weight = nn.Parameter(torch.empty(_DIRECTIONS, rank + 2 * state_dim, dim))
        self.dt_projs_weight = nn.Parameter(torch.empty(_DIRECTIONS, dim, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(_DIRECTIONS, dim))
        self.A_logs = nn.Parameter(log_decay_rates(_DIRECTIONS * dim, state_dim))
        self.Ds = nn.Parameter(torch.ones(_DIRECTIONS * dim))
        self.out_norm = nn.LayerNorm(dim)
        nn.init.uniform_(self.x_proj_weight, -(dim**-0.5), dim**-0.5)
        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        init_step_bias(self.dt_projs_bias)

    def forward(self, x: Tensor) -> Tensor:
        steps, b, c = self._coefficients(x)
        wide = wide_dtype(x)
        a = -torch.exp(self.A_logs.to(wide)).view(_DIRECTIONS, self.dim, -1)
        u, bias = x.to(wide).expand(2, *x.shape), self.dt_projs_bias
        # Directions 0 and 2 scan the rows, 1 and 3 the columns: the same tokens on the transposed grid.
        rows = self.scan_steps(u, steps[0::2], bias[0::2], a[0::2], b[0::2], c[0::2])
        u_, steps_, b_, c_ = (t.transpose(2, 3) for t in (u, steps[1::2], b[1::2], c[1::2]))
        columns = self.scan_steps(u_, steps_, bias[1::2], a[1::2], b_, c_)
        y = u[0] * self.Ds.to(wide).view(_DIRECTIONS, -1).sum(0)
        for part in (*rows, *columns.transpose(2, 3)):
            y = y + part
        return self.out_norm(y.to(x.dtype))

    def reference(self, x: Tensor) -> Tensor:
        """Project, unroll and scan each of the four directions separately."""
        height, width = x.shape[1:3]
        u = x if x.dtype == torch.float64 else x.float()
        total = torch.zeros_like(u)
        for k in range(_DIRECTIONS):
            projected = u @ self.x_proj_weight[k].to(u).T
            low, b, c = projected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
            delta = torch.log1p(torch.exp(low @ self.dt_projs_weight[k].to(u).T + self.dt_projs_bias[k]))
            a = -torch.exp(self.A_logs.view(_DIRECTIONS, self.dim, -1)[k])
            skip = self.Ds.view(_DIRECTIONS, self.dim)[k]
            order = torch.arange(height * width, device=x.device).view(height, width)
            order = (order if k % 2 == 0 else order.T).flatten()
            order = order if k < 2 else order.flip(0)
            tokens = [t.flatten(1, 2)[None, :, None, order] for t in (u, delta, b, c)]  # (1, B, 1, L, ·)
            y = selective_scan_reference(tokens[0], tokens[1], a[None], tokens[2], tokens[3])[0, :, 0]
            y = y + skip * tokens[0][0, :, 0]
            total = total + torch.unflatten(y[:, order.argsort()], 1, (height, width))
        return self.out_norm(total.to(x.dtype))

    def macs(self, grid: Grid) -> Macs:
        tokens = grid[0] * grid[1]
        projection = linear_macs(tokens, self.dim, _DIRECTIONS * (self.dt_rank + 2 * self.state_dim))
        projection = projection.plus(linear_macs(tokens, self.dt_rank, _DIRECTIONS * self.dim))
        return projection.plus(Macs(scan_flops=scan_flops(tokens, _DIRECTIONS * self.dim, self.state_dim, skip=True)))

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute δ (4, B, H, W, C), of which Δ = softplus(δ + bias), and B and C, each (4, B, H, W, N)."""
        projected = F.linear(x, self.x_proj_weight.flatten(0, 1))
        projected = torch.unflatten(projected, -1, (_DIRECTIONS, -1)).permute(3, 0, 1, 2, 4)  # (4, B, H, W, R + 2N)
        low, b, c = projected.split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
        steps = low.flatten(1, 3) @ self.dt_projs_weight.transpose(1, 2)  # (4, B·H·W, C)
        return torch.unflatten(steps, 1, x.shape[:3]), b, c
