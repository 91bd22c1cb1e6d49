"""CvT: convolutions embed the tokens and make the queries, keys and values; also SimA in the same network.

Papers: CvT: Introducing Convolutions to Vision Transformers, arXiv 2103.15808; SimA, arXiv 2206.08898.

Legend: B batch, H W token grid of the stage, N = H·W, C channels, h heads, d = C / h.

    image (B, in_chans, H, W) → three stages → LN → class token → head
    stage:  overlapping convolution (7×7 of stride 4, then 3×3 of stride 2), LN → blocks; a class token in the last
    block:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x)),  MLP with QuickGELU, x·sigmoid(1.702 x)

Attention: q, k and v are linear maps of LN(x), each after a depthwise 3×3 convolution with BN, of stride 2 for k and v.
The class token skips the convolutions. Scores are scaled by 1/√C, the whole width and not a head's, as in the official
code.

With SimA the scores are q̂·k̂ without softmax or scale, every channel divided by its ℓ1 norm over its tokens.

Deviations from the papers: none. There is no position embedding, so any size from 3 pixels works.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.sima import l1_over_tokens
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.conv import MapConv2d, conv_bn
from sema.layers.counted import Counted, layer_macs
from sema.layers.drop_path import drop_path_rates
from sema.layers.mlp import Mlp
from sema.macs import Grid, Macs, linear_macs
from sema.models.backbone import Backbone, TransformerBlock, init_linear, stages_info

_DIMS, _DEPTHS, _HEADS = (64, 192, 384), (1, 2, 10), (1, 3, 6)
#: Side, stride and padding of each stage's convolution.
_EMBEDDINGS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
_MECHANISMS = ("softmax", "sima")


class ConvolutionalAttention(nn.Module):
    """Attention whose q, k and v come from convolutions, without the output projection.

    Args:
        dim: channels C.
        num_heads: heads h.
        mechanism: ``softmax`` or ``sima``.
        class_tokens: number of class tokens in front of the map's tokens, 0 or 1.
    """

    def __init__(self, dim: int, num_heads: int, *, mechanism: str, class_tokens: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mechanism = mechanism
        self.class_tokens = class_tokens
        self.conv_proj_q, self.conv_proj_k, self.conv_proj_v = (
            conv_bn(MapConv2d(dim, dim, stride=stride, groups=dim, bias=False)) for stride in (1, 2, 2)
        )
        self.proj_q, self.proj_k, self.proj_v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mix tokens (B, N, C) of ``grid``, or (B, 1 + N, C) with a class token in front; return the same shape."""
        q, k, v = (
            torch.unflatten(part, -1, (self.num_heads, -1)).transpose(1, 2) for part in self.projected(x, grid)
        )  # (B, h, N, d)
        if self.mechanism == "softmax":
            out = F.scaled_dot_product_attention(q, k, v, scale=x.shape[-1] ** -0.5)
        else:
            q, k = ((part / l1_over_tokens(part)).to(v.dtype) for part in (q, k))
            is_quadratic = self.is_quadratic(q.shape[2], k.shape[2])
            out = (q @ k.transpose(-2, -1)) @ v if is_quadratic else q @ (k.transpose(-2, -1) @ v)
        return out.transpose(1, 2).flatten(2)

    def projected(self, x: Tensor, grid: Grid) -> list[Tensor]:
        """Compute q, k and v; k and v on a grid of half the side, rounded up: (B, N, C) and (B, N', C)."""
        extra = self.class_tokens
        patches = torch.unflatten(x[:, extra:], 1, grid)
        parts = []
        for conv, linear in (
            (self.conv_proj_q, self.proj_q),
            (self.conv_proj_k, self.proj_k),
            (self.conv_proj_v, self.proj_v),
        ):
            tokens = conv(patches).flatten(1, 2)
            parts.append(linear(torch.cat((x[:, :extra], tokens), dim=1) if extra else tokens))
        return parts

    def macs(self, grid: Grid) -> Macs:
        """Count the MACs on a map of ``grid`` and the class tokens."""
        dim = self.proj_q.in_features
        total = Macs()
        counts = []
        for conv in (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v):
            macs, after = layer_macs(conv, grid)
            counts.append(after[0] * after[1] + self.class_tokens)
            total = total.plus(macs).plus(linear_macs(counts[-1], dim, dim))
        queries, keys, _ = counts
        products = 2 * queries * keys
        if self.mechanism == "sima" and not self.is_quadratic(queries, keys):
            products = (queries + keys) * (dim // self.num_heads)
        return total.plus(Macs(attention=products * dim))

    def is_quadratic(self, queries: int, keys: int) -> bool:
        """Check whether (Q Kᵀ) V has fewer MACs than Q (Kᵀ V)."""
        return 2 * queries * keys < (queries + keys) * (self.proj_q.in_features // self.num_heads)


class QuickGeluMlp(Mlp):
    """Linear, QuickGELU, Linear, on the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))


class Block(TransformerBlock):
    """Pre-norm block on tokens (B, L, C) of a grid: attention and MLP, each with a residual."""

    mlp_class = QuickGeluMlp

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        assert isinstance(self.attn, ConvolutionalAttention)
        tokens, dim = grid[0] * grid[1] + self.attn.class_tokens, self.proj.in_features
        return self.attn.macs(grid).plus(linear_macs(tokens, dim, 9 * dim)), grid


class Stage(Counted):
    """One stage: an overlapping convolution with LN, then blocks; the last stage has a class token in front."""

    def __init__(self, conv: MapConv2d, blocks: list[Block], *, class_token: bool) -> None:
        super().__init__()
        dim = conv.out_channels
        self.patch_embed = nn.Sequential(OrderedDict(proj=conv, norm=nn.LayerNorm(dim)))
        self.blocks = nn.ModuleList(blocks)
        self.cls_token: nn.Parameter | None = None
        if class_token:
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=0.02))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, H, W, C) → the map of this stage and its class token (B, C)."""
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x, grid)
        if self.cls_token is None:
            return torch.unflatten(x, 1, grid), None
        return torch.unflatten(x[:, 1:], 1, grid), x[:, 0]

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        total, grid = super().macs(grid)
        return total, grid if self.cls_token is None else (1, 1)  # the classifier reads only the class token


class CvT(Backbone):
    """CvT-13's three stages and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        mechanism: ``softmax`` or ``sima``.
        num_classes, in_chans: see ``Backbone``.
        drop_path_rate: stochastic depth of the last block; only the last stage has it, rising linearly from 0.

    Raises:
        ValueError: an unknown ``mechanism``.
    """

    min_resolution = 3
    checkpoint_layout = CheckpointLayout(renames=((r"^(stage\d+\.blocks\.\d+)\.attn\.proj\.", r"\1.proj."),))

    def __init__(
        self, mechanism: str, *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        if mechanism not in _MECHANISMS:
            raise ValueError(f"mechanism must be one of {', '.join(_MECHANISMS)}; got {mechanism!r}")
        self.feature_info = stages_info("stage{}", _DIMS)
        channels = in_chans
        for index, (dim, depth, heads, embedding) in enumerate(zip(_DIMS, _DEPTHS, _HEADS, _EMBEDDINGS, strict=True)):
            is_last = index == len(_DIMS) - 1
            attentions = (
                ConvolutionalAttention(dim, heads, mechanism=mechanism, class_tokens=int(is_last)) for _ in range(depth)
            )
            rates = drop_path_rates(drop_path_rate if is_last else 0.0, depth)
            blocks = [Block(dim, built, drop_path_rate=rate) for built, rate in zip(attentions, rates, strict=True)]
            self.add_module(f"stage{index}", Stage(MapConv2d(channels, dim, *embedding), blocks, class_token=is_last))
            channels = dim
        self.norm = nn.LayerNorm(channels)
        self.head = nn.Linear(channels, num_classes)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        x, token = self.to_map(x), None
        for stage in self._stages():
            x, token = stage(x)
        return self.head(self.norm(token))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute the map of each of the three stages, (B, H, W, C), without the class token."""
        x, maps = self.to_map(x), []
        for stage in self._stages():
            x, _ = stage(x)
            maps.append(x)
        return maps

    def _stages(self) -> list[Stage]:
        return [child for child in self.children() if isinstance(child, Stage)]
