"""Vim's token mixing: a causal convolution and a selective scan over the tokens in reading order, once each way.

Paper: Vision Mamba, arXiv 2401.09417; Mamba, arXiv 2312.00752.

Legend: B batch, H W token grid, L = H·W, C channels, N states per channel, R rank of the step sizes, K taps of the
convolution.

Equation, forward along the tokens and, with separate parameters, backward:

    x = SiLU(conv_K(u)),  causal in the direction of the scan
    (δ, B, C)_t = W x_t,   Δ_t = softplus(W' δ_t + b),   A = −exp(A_log)
    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t,   y_t = C_t · h_t + D x_t
    out = (y_forward + y_backward) / 2

Complexity: 2L·C(R + 2N) + 2L·R·C for the projections, 2L·K·C for the convolutions, 9·2L·C·N + 2L·C FLOPs for the scans;
linear in L.

Deviations from the paper: none. The gate that multiplies both directions and the outer projections belong to the
block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import ScanAttention
from sema.layers.selective_scan import scan_flops, selective_scan_reference
from sema.layers.state_space import StepProjection, log_decay_rates
from sema.layers.tokens import wide_dtype
from sema.macs import Grid, Macs


class VimAttention(ScanAttention):
    """Selective scan over the tokens in reading order, both ways; linear in tokens (Vim).

    ``conv_size`` is K, the taps of the causal convolution; see ``ScanAttention`` for the other options.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        state_dim: int = 16,
        conv_size: int = 4,
        dt_rank: int | None = None,
        scan: str = "auto",
    ) -> None:
        super().__init__(dim, num_heads, state_dim=state_dim, conv_size=conv_size, dt_rank=dt_rank, scan=scan)
        self.conv1d, self.conv1d_b = (nn.Conv1d(dim, dim, conv_size, groups=dim) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(dim, self.dt_rank + 2 * state_dim, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (StepProjection(self.dt_rank, dim) for _ in range(2))
        self.A_log, self.A_b_log = (nn.Parameter(log_decay_rates(dim, state_dim)) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(self.mix_sequence(x.flatten(1, 2)), 1, x.shape[1:3])

    def mix_sequence(self, x: Tensor) -> Tensor:
        """Mix the tokens of a sequence (B, L, C); a class token may be among them."""
        wide = wide_dtype(x)
        inputs = self._convolved(x)  # (2, B, L, C)
        parts = []
        for u, (_, x_proj, dt_proj, _, _) in zip(inputs, self._directions(), strict=True):
            low, b, c = x_proj(u).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
            parts.append((dt_proj(low), b, c))
        steps, b, c = (torch.stack(part).unsqueeze(2) for part in zip(*parts, strict=True))  # (2, B, 1, L, ·)
        bias = torch.stack((self.dt_proj.bias, self.dt_proj_b.bias))
        a = -torch.exp(torch.stack((self.A_log, self.A_b_log)).to(wide))
        u = inputs.to(wide)
        y = self.scan_steps(u.unsqueeze(2), steps, bias, a, b, c).squeeze(2)
        skip = torch.stack((self.D, self.D_b)).to(wide)[:, None, None]
        return torch.addcmul(y, u, skip).mean(0).to(x.dtype)

    def reference(self, x: Tensor) -> Tensor:
        """Scan each direction separately, the backward one on the reversed sequence."""
        outputs = []
        tokens = x.flatten(1, 2)
        for backward, (conv, x_proj, dt_proj, a_log, skip) in enumerate(self._directions()):
            sequence = tokens.flip(1) if backward else tokens
            taps = conv.weight.shape[-1]
            padded = F.pad(sequence, (0, 0, taps - 1, 0))
            assert conv.bias is not None
            u = conv.bias.expand_as(sequence)
            for tap in range(taps):
                u = u + conv.weight[:, 0, tap] * padded[:, tap : tap + sequence.shape[1]]
            u = u * torch.sigmoid(u)
            low, b, c = x_proj(u).split([self.dt_rank, self.state_dim, self.state_dim], dim=-1)
            delta = torch.log1p(torch.exp(low @ dt_proj.weight.T + dt_proj.bias))
            u_, delta_, b_, c_ = (t[None, :, None] for t in (u, delta, b, c))
            y = selective_scan_reference(u_, delta_, -torch.exp(a_log)[None], b_, c_)[0, :, 0]
            y = y + skip * u
            outputs.append(y.flip(1) if backward else y)
        return torch.unflatten((outputs[0] + outputs[1]) / 2, 1, x.shape[1:3])

    def macs(self, grid: Grid) -> Macs:
        return self.sequence_macs(grid[0] * grid[1])

    def sequence_macs(self, tokens: int) -> Macs:
        """Count the MACs of ``mix_sequence`` on ``tokens`` tokens."""
        both = 2 * tokens * self.dim
        return Macs(
            projection=both * (2 * self.dt_rank + 2 * self.state_dim),
            convolution=both * self.conv1d.kernel_size[0],
            scan_flops=scan_flops(tokens, 2 * self.dim, self.state_dim, skip=True),
        )

    def _directions(self) -> tuple[tuple[nn.Conv1d, nn.Linear, StepProjection, nn.Parameter, nn.Parameter], ...]:
        """Group the parameters of the forward and the backward scan."""
        return (
            (self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D),
            (self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b),
        )

    def _convolved(self, x: Tensor) -> Tensor:
        """Compute SiLU of the causal convolution of ``x`` (B, L, C) and of the anticausal one: (2, B, L, C)."""
        reach, length = self.conv1d.kernel_size[0] - 1, x.shape[1]
        padded = F.pad(x, (0, 0, reach, reach)).unsqueeze(1).permute(0, 3, 1, 2)  # (B, C, 1, L + 2·reach)
        outputs = []
        for backward, (conv, *_) in enumerate(self._directions()):
            weight, start = (conv.weight.flip(-1), reach) if backward else (conv.weight, 0)
            part = padded[..., start : start + reach + length]
            out = F.conv2d(part, weight.unsqueeze(2), conv.bias, groups=self.dim)
            outputs.append(F.silu(out.squeeze(2).transpose(1, 2)))
        return torch.stack(outputs)
