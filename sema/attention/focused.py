"""Focused linear attention: linear attention whose features are sharpened by a power, plus a local convolution.

Paper: FLatten Transformer: Vision Transformer using Focused Linear Attention, arXiv 2308.00442; details follow the
official code, LeapLabTHU/FLatten-Transformer.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, p focusing factor, K side of the convolution.

Equation, with a learned position encoding P, a learned scale s per channel and elementwise powers:

    φ(x) = ‖x'‖ · x'^p / ‖x'^p‖,   x' = (ReLU(x) + ε) / softplus(s)        (norms over all C channels)
    out_i = Σ_j φ(q_i)·φ(k_j + P_j) v_j / Σ_j φ(q_i)·φ(k_j + P_j)  +  (DWC v)_i   (sums per head)

DWC is a depthwise K×K convolution of the values; all heads share its d kernels.

Complexity: 3NC² for the projections, 2NC·d + NC for the products, K²NC for the convolution; linear in N.

Deviations from the paper: P is stored for a base grid, as in the official code, which works only at that grid. At any
other grid it is interpolated (bicubic).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import QkvAttention
from sema.layers.conv import shifted_sum
from sema.layers.positions import stored_grid
from sema.layers.table_cache import TableCache
from sema.layers.tokens import chosen_rows, merge_heads, split_heads, wide_dtype
from sema.macs import Grid, Macs, conv_macs, total_macs

#: Keeps features and denominators away from zero, as in the official code.
EPSILON = 1e-6


class HeadwiseConv2d(nn.Conv2d):
    """Depthwise convolution of a map (B, H, W, C); all heads share its d kernels."""

    def __init__(self, head_dim: int, kernel_size: int) -> None:
        super().__init__(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim)

    def forward(self, v: Tensor) -> Tensor:
        # Repeating the kernels for each head avoids copying the map.
        assert self.bias is not None
        heads, reach = v.shape[-1] // self.in_channels, self.kernel_size[0] // 2
        weight, bias = self.weight.repeat(heads, 1, 1, 1), self.bias.repeat(heads)
        out = F.conv2d(v.permute(0, 3, 1, 2), weight, bias, padding=reach, groups=v.shape[-1])
        return out.permute(0, 2, 3, 1)


class FocusedLinearAttention(QkvAttention):
    """Linear attention with features sharpened by a power; linear in tokens (FLatten).

    Args:
        token_grid: (H, W) for which the position encoding is stored; it is interpolated to any other grid.
        focusing_factor: power p.
        kernel_size: side K of the convolution of the values; odd.
    """

    uses_token_grid = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        token_grid: Grid = (14, 14),
        focusing_factor: int = 3,
        kernel_size: int = 5,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        if min(token_grid) < 1 or focusing_factor < 1:
            raise ValueError(f"token_grid and focusing_factor must be positive; got {token_grid}, {focusing_factor}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd; got {kernel_size}")
        self.token_grid = (token_grid[0], token_grid[1])
        self.focusing_factor = focusing_factor
        self.dwc = HeadwiseConv2d(self.head_dim, kernel_size)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.zeros(1, token_grid[0] * token_grid[1], dim))
        self._table_cache = TableCache[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # (B, H, W, C)
        q, k = (split_heads(part, self.num_heads).to(v.dtype) for part in self._features(q, k, grid))  # (B, h, N, d)
        values, tokens = split_heads(v, self.num_heads), grid[0] * grid[1]
        # Sums over tokens become means of order one, which fit into half precision.
        summary = (k * tokens**-0.5).transpose(-2, -1) @ (values * tokens**-0.5)  # (B, h, d, d)
        out = (q @ summary) / (q @ k.mean(dim=-2).unsqueeze(-1) + EPSILON)
        return merge_heads(out, grid) + self.dwc(v)

    def reference(self, x: Tensor) -> Tensor:
        """Multiply the values by the explicit N×N matrix, and add their convolution head by head."""
        return super().reference(x) + self.local_reference(x)

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        grid = (x.shape[1], x.shape[2])
        features = []
        for part in (q, k + self._interpolated(grid)):
            part = (part.clamp(min=0) + EPSILON) / torch.log1p(torch.exp(self.scale.view(-1)))
            power = part**self.focusing_factor
            norms = [y.square().sum(-1, keepdim=True).sqrt() for y in (part, power)]
            features.append(split_heads(power / norms[1] * norms[0], self.num_heads))
        products = chosen_rows(features[0], rows) @ features[1].transpose(-2, -1) / (grid[0] * grid[1])
        return products / (products.sum(-1, keepdim=True) + EPSILON)

    def local_reference(self, x: Tensor) -> Tensor:
        """Compute the local term naively: convolve each head's values with the same kernels."""
        assert self.dwc.bias is not None
        v = torch.unflatten(self.qkv(x)[..., 2 * self.dim :], -1, (self.num_heads, -1))  # (B, H, W, h, d)
        return (shifted_sum(v, self.dwc.weight[:, 0]) + self.dwc.bias).flatten(3)

    def macs(self, grid: Grid) -> Macs:
        attention = Macs(attention=grid[0] * grid[1] * self.dim * (2 * self.head_dim + 1))
        convolution = conv_macs(grid, self.dim, self.dim, self.dwc.kernel_size[0], groups=self.dim)  # for every head
        return total_macs(self.projection_macs(grid), attention, convolution)

    def fit_stored(self, name: str, stored: Tensor) -> Tensor | None:
        """Accept an encoding for another grid, see ``sema.checkpoint_layout``."""
        fits = stored.ndim == 3 and stored.shape[::2] == self.positional_encoding.shape[::2]
        return stored if name == "positional_encoding" and fits else None

    def extra_repr(self) -> str:
        return f"token_grid={self.token_grid}, focusing_factor={self.focusing_factor}"

    def _features(self, q: Tensor, k: Tensor, grid: Grid) -> list[Tensor]:
        """Compute φ(q) and φ(k + P), (B, H, W, C) in float32 or wider: powers exceed the range of half precision."""
        wide = wide_dtype(q)
        positions = self.positions(grid)
        rate = 1.0 / F.softplus(self.scale.to(wide)).view(-1)
        features = []
        for x in (q.to(wide), k.to(wide) + positions.to(wide)):
            x = (F.relu(x) + EPSILON) * rate
            power = x.pow(self.focusing_factor)
            norms: list[Tensor] = [torch.linalg.vector_norm(y, dim=-1, keepdim=True) for y in (x, power)]
            features.append(power * (norms[0] / norms[1]))
        return features

    def positions(self, grid: Grid) -> Tensor:
        """Return the position encoding P of the keys for ``grid``, (1, H, W, C)."""
        return self._table_cache((self.positional_encoding,), grid, self._interpolated, training=self.training)

    def _interpolated(self, grid: Grid) -> Tensor:
        table = self.positional_encoding
        base = torch.unflatten(table, 1, stored_grid(table.shape[1], self.token_grid, grid))
        if grid == base.shape[1:3]:
            return base
        maps = base.permute(0, 3, 1, 2)
        maps = maps if maps.dtype == torch.float64 else maps.float()
        return F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1).contiguous()
