"""Parameters of a selective state space, and their initial values (Mamba, arXiv 2312.00752, section 3.6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.tokens import wide_dtype

#: Range of the initial step sizes Δ, and the smallest one.
_SHORTEST_STEP, _LONGEST_STEP, _STEP_FLOOR = 1e-3, 1e-1, 1e-4


def log_decay_rates(channels: int, states: int) -> Tensor:
    """Return log(1), …, log(N) for every channel (the real part of S4D): (channels, states)."""
    return torch.log(torch.arange(1, states + 1, dtype=torch.float32)).repeat(channels, 1)


def init_step_bias(bias: Tensor) -> None:
    """Fill ``bias`` so that softplus(bias) is log-uniform between the shortest and the longest step size."""
    low, high = math.log(_SHORTEST_STEP), math.log(_LONGEST_STEP)
    with torch.no_grad():
        steps = torch.exp(nn.init.uniform_(torch.empty_like(bias), low, high)).clamp_(min=_STEP_FLOOR)
        bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus


def step_sizes(steps: Tensor, bias: Tensor) -> Tensor:
    """Compute Δ = softplus(steps + bias) from (G, B, P, Q, D) and (G, D), in float32 or wider."""
    wide = wide_dtype(steps)
    return F.softplus(steps.to(wide) + bias.to(wide)[:, None, None, None])


class StepProjection(nn.Module):
    """Linear map from rank R to C channels, whose step sizes are softplus(forward(x) + bias).

    It is not an ``nn.Linear``, so a model's initialisation leaves it alone.
    """

    def __init__(self, rank: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.uniform_(torch.empty(dim, rank), -(rank**-0.5), rank**-0.5))
        self.bias = nn.Parameter(torch.empty(dim))
        init_step_bias(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Compute W x, (…, R) → (…, C); the bias belongs to the scan."""
        return x @ self.weight.T
