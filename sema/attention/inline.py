"""InLine attention: linear attention made injective by a subtraction, plus an input-dependent local convolution.

Paper: Bridging the Divide: Reconsidering Softmax and Linear Attention, arXiv 2412.06590; details follow the official
code, LeapLabTHU/InLine.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, s = 1/√d.

Equation, per head, with k̄ and v̄ the means over the tokens:

    out_i = (s/N) Σ_j (q_i·k_j) v_j + (1 − s q_i·k̄) v̄ + (R(x̄) * v)_i

The weights of row i sum to 1 and may be negative. R is a depthwise 3×3 convolution. Two linear maps per head, with
GELU between them, compute its kernels from the mean token x̄.

Complexity: 3NC² for the projections, 2NC·d + NC for the products, 9NC for the convolution; linear in N.

Deviations from the paper: none. The paper leaves s/N out of its equation and puts it into φ(Q); the official code has
it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import QkvAttention
from sema.layers.conv import shifted_sum
from sema.layers.tokens import chosen_rows, merge_heads, wide_dtype
from sema.macs import Grid, Macs, conv_macs, total_macs

_KERNEL = 3


class InLineAttention(QkvAttention):
    """Injective linear attention with a local residual; linear in tokens (InLine)."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=num_heads),
            nn.GELU(),
            nn.Conv1d(dim, _KERNEL**2 * dim, 1, groups=num_heads),
        )

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        q, k, v = self.heads(x)  # (B, h, N, d)
        scale, tokens = self.head_dim**-0.5, grid[0] * grid[1]
        k_mean, v_mean = (part.mean(dim=-2, keepdim=True) for part in (k, v))  # (B, h, 1, d)
        root = (scale / tokens) ** 0.5
        summary = (k * root).transpose(-2, -1) @ (v * root)  # (B, h, d, d)
        share = 1 - q @ k_mean.transpose(-2, -1) * scale  # (B, h, N, 1)
        out = merge_heads(torch.addcmul(q @ summary, share, v_mean), grid)
        return out + self._local(merge_heads(v, grid), self.kernels(x))

    def reference(self, x: Tensor) -> Tensor:
        """Multiply the values by the explicit N×N matrix, and add the local term."""
        return super().reference(x) + self.local_reference(x)

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = self.heads(x)
        products = chosen_rows(q, rows) @ k.transpose(-2, -1) * self.head_dim**-0.5
        centred: Tensor = products - products.mean(dim=-1, keepdim=True)
        return (centred + 1) / k.shape[-2]

    def local_reference(self, x: Tensor) -> Tensor:
        """Compute the local term naively: sum shifted copies of the values, weighted by the mean token's kernels."""
        kernels = torch.unflatten(self.kernels(x), 0, (x.shape[0], -1))[:, :, 0]  # (B, C, 3, 3)
        return shifted_sum(merge_heads(self.values(x), (x.shape[1], x.shape[2])), kernels[:, None, None])

    def macs(self, grid: Grid) -> Macs:
        tokens, area = grid[0] * grid[1], _KERNEL**2
        attention = Macs(attention=tokens * self.dim * (2 * self.head_dim + 1))
        kernels = Macs(convolution=(1 + area) * self.dim * self.head_dim)  # made from one token
        convolution = conv_macs(grid, self.dim, self.dim, _KERNEL, groups=self.dim)
        return total_macs(self.projection_macs(grid), attention, kernels, convolution)

    def kernels(self, x: Tensor) -> Tensor:
        """Make the kernels R from the mean token: (B, H, W, C) → (B·C, 1, 3, 3)."""
        mean = x.mean(dim=(1, 2), dtype=wide_dtype(x)).to(x.dtype).unsqueeze(-1)  # (B, C, 1)
        return self.residual(mean).reshape(-1, 1, _KERNEL, _KERNEL)

    def _local(self, v: Tensor, kernels: Tensor) -> Tensor:
        """Convolve each image of ``v`` (B, H, W, C) with its own kernels, as one map with all images' channels."""
        batch, height, width, _ = v.shape
        side_by_side = v.permute(1, 2, 0, 3).reshape(1, height, width, -1).permute(0, 3, 1, 2)
        out = F.conv2d(side_by_side, kernels, padding=_KERNEL // 2, groups=batch * self.dim)
        return torch.unflatten(out.permute(0, 2, 3, 1), -1, (batch, -1))[0].permute(2, 0, 1, 3)
