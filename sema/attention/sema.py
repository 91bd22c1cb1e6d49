"""SEMA: softmax attention in local windows plus the mean of the values over the whole image.

Paper: SEMA: a Scalable and Efficient Mamba like Attention via Token Localization and Averaging, arXiv 2506.08297,
ICML 2026.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h, w window size, t tokens of one window.

Equation, for token m in window J(m):

    SEMA_m = Σ_{j∈J(m)} exp(s q_m·k_j) v_j / Σ_{i∈J(m)} exp(s q_m·k_i)  +  (1/N) Σ_j v_j

The first term stays focused at any image size, because J(m) has a fixed size. The second carries what all tokens have
in common, at the cost of one average. ``pooling="max"`` replaces the mean with the channelwise maximum of the values,
and ``"none"`` drops the term; these ablations are not in the paper. ``lepe`` adds a depthwise 3×3 convolution of the
values: the local positional term of MILA, whose macro design SEMA adopts.

Complexity: 3NC² for the projections, 2·C·Σt² ≤ 2·N·w²·C for the windows, 9NC for LePE; linear in N.

Deviations from the paper: not known, because its text, tables and code were not available here. The equation follows
the abstract and VideoSEMA, a later paper by the same authors, which prints it with q, k and v as affine maps. The cost
that VideoSEMA prints fits a projection of the values: it has 8 frames and one for the class, and 9 times the
4.4057 GMAC of our SEMA-T is 39.65 G, against a printed 40; without the projection it would be 37.57.

Our choices, with an option where another choice is possible: LePE is on, the scale is 1/√d (``scale=1.0`` is the
formula as VideoSEMA prints it), and there is no shift, no relative position bias and no RoPE. If w does not divide the
grid, the windows at its edge are smaller; nothing is padded, so no padding can enter a softmax or the mean.
"""

from __future__ import annotations

from torch import Tensor

from sema.attention.base import Attention
from sema.attention.window import WindowAttention, attend_in_windows
from sema.layers.counted import layer_macs
from sema.layers.positions import LocallyEnhancedPositionalEncoding
from sema.layers.tokens import merge_heads, token_mean
from sema.macs import Grid, Macs

_POOLINGS = ("mean", "max", "none")


class SemaAttention(WindowAttention):
    """Window softmax attention plus the global mean of the values; linear in tokens (SEMA).

    Args:
        window_size: side w of a window in tokens.
        scale: factor s of the scores; None is 1/√d, 1.0 is the formula as VideoSEMA prints it.
        lepe: add a depthwise 3×3 convolution of the values.
        pooling: the term added to every token: ``mean`` or ``max`` of the values, or ``none``.
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
        super().__init__(dim, num_heads, window_size=window_size, scale=scale, qkv_bias=qkv_bias)
        if pooling not in _POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(_POOLINGS)}; got {pooling!r}")
        self.pooling = pooling
        self.lepe = LocallyEnhancedPositionalEncoding(dim) if lepe else None

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B, H, W, 3C)
        v = qkv[..., 2 * self.dim :]
        # One pass merges the windows into the map and adds them to the rest.
        rest: Tensor | None = None if self.lepe is None else self.lepe(v)
        if self.pooling != "none":
            pooled = pool_tokens(v, self.pooling)
            rest = pooled.expand(v.shape).contiguous() if rest is None else rest + pooled
        window = (self.window_size, self.window_size)
        return attend_in_windows(qkv, num_heads=self.num_heads, window=window, scale=self.scale, onto=rest)

    def reference(self, x: Tensor) -> Tensor:
        """Multiply the values by the N×N window softmax; add their mean, and LePE as a sum of shifted copies."""
        grid = (x.shape[1], x.shape[2])
        v = self.heads(x)[2]  # (B, h, N, d)
        out = super().coefficients(x) @ v
        if self.pooling == "mean":
            out = out + v.mean(dim=-2, keepdim=True)
        elif self.pooling == "max":
            out = out + v.max(dim=-2, keepdim=True).values
        merged = merge_heads(out, grid)
        return merged if self.lepe is None else merged + self.lepe.reference(merge_heads(v, grid))

    @property
    def has_coefficients(self) -> bool:
        """True unless ``pooling`` is ``max``, which takes each channel from a different token."""
        return self.pooling != "max"

    def coefficients(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        if not self.has_coefficients:
            return Attention.coefficients(self, x)
        local = super().coefficients(x, rows)
        return local + 1.0 / local.shape[-1] if self.pooling == "mean" else local

    def macs(self, grid: Grid) -> Macs:
        total = super().macs(grid)
        return total if self.lepe is None else total.plus(layer_macs(self.lepe, grid)[0])

    def extra_repr(self) -> str:
        return f"window_size={self.window_size}, scale={self.scale:g}, pooling={self.pooling}"


def pool_tokens(v: Tensor, pooling: str) -> Tensor:
    """Pool all tokens into one by ``mean`` or ``max``: (B, H, W, C) → (B, 1, 1, C)."""
    return token_mean(v) if pooling == "mean" else v.amax(dim=(1, 2), keepdim=True)
