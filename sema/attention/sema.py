"""SEMA: softmax attention in local windows plus the mean of the values over the whole image.

Paper: SEMA, arXiv 2506.08297.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, w window size, t tokens of one window.

Equation, for token m in window J(m):

    SEMA_m = Σ_{j∈J(m)} exp(s q_m·k_j) v_j / Σ_{i∈J(m)} exp(s q_m·k_i)  +  (1/N) Σ_j v_j

The first term keeps its focus however large the image is, because J(m) has a fixed size; the second carries what all
tokens have in common, at the cost of one average. ``pooling="max"`` puts the channelwise maximum of the values in the
mean's place and ``"none"`` leaves the term out: ablations, not in the paper. With ``lepe`` a depthwise 3×3 convolution
of the values is added, the local positional term of MILA, whose macro design SEMA takes over.

Complexity: 3NC² for the projections, 2·C·Σt² ≤ 2·N·w²·C for the windows, 9NC for LePE; linear in N.

Deviations from the paper: none known. Where the text leaves a choice open, it is an option: the scale is 1/√d
(``scale=1.0`` is the formula as printed), LePE is on, and there is no shift, no relative position bias and no RoPE.
At the edge of a grid that w does not divide the windows are smaller; nothing is padded, so no padding can enter a
softmax or the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sema.attention.base import Attention, QkvAttention
from sema.attention.window import attend_in_windows, check_window_size
from sema.layers.positions import LocallyEnhancedPositionalEncoding
from sema.layers.tokens import chosen_rows, merge_heads, token_mean
from sema.layers.windows import window_pairs
from sema.macs import Grid, Macs

_POOLINGS = ("mean", "max", "none")


class SemaAttention(QkvAttention):
    """Window softmax attention plus the global mean of the values; linear in tokens (SEMA).

    Args:
        dim: channels C.
        num_heads: heads h.
        window_size: side w of a window in tokens.
        scale: factor s of the scores; None is 1/√d, 1.0 is the formula as printed.
        lepe: add a depthwise 3×3 convolution of the values.
        pooling: the term added to every token: ``mean`` or ``max`` of the values, or ``none``.
        qkv_bias: whether the projections have a bias.

    Raises:
        ValueError: ``window_size`` < 1, or an unknown ``pooling``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        window_size: int = 7,
        scale: float | None = None,
        lepe: bool = True,
        pooling: str = "mean",
        qkv_bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias)
        check_window_size(window_size)
        self.window_size = window_size
        self.scale = self.head_dim**-0.5 if scale is None else float(scale)
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}; got {pooling!r}")
        self.pooling = pooling
        self.lepe = LocallyEnhancedPositionalEncoding(dim) if lepe else None

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B, H, W, 3C)
        v = qkv[..., 2 * self.dim :]
        # The windows are added to the rest in the pass that merges them into the map.
        rest: Tensor | None = None if self.lepe is None else self.lepe(v)
        if self.pooling != "none":
            pooled = pool_tokens(v, self.pooling)
            rest = pooled.expand(v.shape).contiguous() if rest is None else rest + pooled
        return attend_in_windows(
            qkv, num_heads=self.num_heads, window_size=self.window_size, scale=self.scale, onto=rest
        )

    def reference(self, x: Tensor) -> Tensor:
        """Weigh the values by the N×N matrix of window softmax and 1/N, then add LePE as a sum of shifted copies."""
        grid = (x.shape[1], x.shape[2])
        v = self.heads(x)[2]
        out = merge_heads(self._weights(x) @ v, grid)
        if self.pooling == "max":
            out = out + merge_heads(v.max(dim=-2, keepdim=True).values.expand(v.shape), grid)
        return out if self.lepe is None else out + self.lepe.reference(merge_heads(v, grid))

    @property
    def has_coefficients(self) -> bool:
        """No matrix holds a maximum: it weighs each channel by other tokens."""
        return self.pooling != "max"

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._weights(x, rows) if self.has_coefficients else Attention.coefficients(self, x)

    def values(self, x: Tensor) -> Tensor:
        return super().values(x) if self.has_coefficients else Attention.values(self, x)

    def _weights(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute the part of the mechanism that is a matrix over tokens: (B, h, N, N), or some of its rows."""
        height, width = x.shape[1:3]
        q, k, _ = self.heads(x)
        token = torch.arange(height * width, device=x.device)
        row, column = token // width // self.window_size, token % width // self.window_size
        own_row, own_column = (chosen_rows(index, rows, 0)[:, None] for index in (row, column))
        together = (own_row == row) & (own_column == column)  # (N, N): same window
        scores = self.scale * chosen_rows(q, rows) @ k.transpose(-2, -1)
        local = scores.masked_fill(~together, float("-inf")).softmax(dim=-1)
        return local + 1.0 / (height * width) if self.pooling == "mean" else local

    def macs(self, grid: Grid) -> Macs:
        total = self.projection_macs(grid)
        total = total.plus(Macs(attention=2 * self.dim * window_pairs(grid, self.window_size)))
        return total if self.lepe is None else total.plus(self.lepe.macs(grid))

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, scale={self.scale:g}, pooling={self.pooling}"


def pool_tokens(v: Tensor, pooling: str) -> Tensor:
    """Pool all tokens into one by ``mean`` or ``max``: (B, H, W, C) → (B, 1, 1, C)."""
    return token_mean(v) if pooling == "mean" else v.amax(dim=(1, 2), keepdim=True)
