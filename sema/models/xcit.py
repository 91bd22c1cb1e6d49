"""The XCiT form of a vision transformer, with cross-covariance attention (XCiT) or with SimA.

Papers: XCiT, arXiv 2106.09681; SimA, arXiv 2206.08898, whose official code (UCDvision/sima) builds on XCiT's.

Legend: B batch, H W grid of patches, N = H·W, C channels.

    image (B, in_chans, H, W) → four 3×3 convolutions of stride 2, BN, GELU between: ÷16 → + Fourier positions → blocks
    block:  x ← x + γ1·proj(attn(LN(x)));  x ← x + γ3·LPI(LN(x));  x ← x + γ2·MLP(LN(x))
    → a class token in front → two class-attention blocks → LN → class token → head

LPI is two depthwise 3×3 convolutions with GELU and BN between them. Maps are (B, H, W, C) up to the class token.

Deviations from the papers: none. Any image size runs: the convolutions give ⌈H/16⌉ × ⌈W/16⌉ patches and the positions
follow the live grid. In training mode the official SimA code returns its logits twice; here they come once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.attention.sima import SimaAttention
from sema.attention.xca import CrossCovarianceAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.class_attention import ClassAttentionBlock
from sema.layers.conv import DepthwiseConv2d, MapBatchNorm2d, StridedConv2d
from sema.layers.drop_path import DropPath
from sema.layers.image import check_image
from sema.layers.mlp import Mlp
from sema.layers.positions import FourierPositions
from sema.macs import Grid, Macs, linear_macs, total_macs
from sema.models.backbone import check_depth, head_macs, init_linear, run_quarters

_LAYER_NORM_EPS = 1e-6


class LocalPatchInteraction(nn.Module):
    """LPI: depthwise 3×3 convolution, GELU, batch norm, depthwise 3×3 convolution, on a map (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = DepthwiseConv2d(dim)
        self.bn = MapBatchNorm2d(dim)
        self.conv2 = DepthwiseConv2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn(F.gelu(self.conv1(x))))


class Block(nn.Module):
    """Attention, local patch interaction and MLP, each pre-norm with a residual scaled by channel."""

    def __init__(self, dim: int, attention: Attention, *, eta: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.attn = attention
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = Mlp(dim, 4 * dim)
        self.norm3 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.local_mp = LocalPatchInteraction(dim)
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(3))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma1 * self.proj(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x)))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on a map of ``grid`` tokens."""
        tokens, dim = grid[0] * grid[1], self.proj.in_features
        total = self.attn.macs(grid).plus(linear_macs(tokens, dim, dim)).plus(self.mlp.macs(tokens))
        return total.plus(self.local_mp.conv1.macs(grid)).plus(self.local_mp.conv2.macs(grid))


class PatchEmbed(nn.Module):
    """Four 3×3 convolutions of stride 2 with batch norm, GELU between: (B, H, W, in_chans) → (B, ⌈H/16⌉, ⌈W/16⌉, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        widths = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        self.proj = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.proj.append(nn.Sequential(StridedConv2d(before, after, bias=False), MapBatchNorm2d(after)))
            if after != dim:
                self.proj.append(nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on an image of ``grid`` pixels, and the grid of patches that it gives."""
        total = Macs()
        for conv in (layer for layer in self.proj.modules() if isinstance(layer, StridedConv2d)):
            macs, grid = conv.macs(grid)
            total = total.plus(macs)
        return total, grid


class XCiT(nn.Module):
    """Transformer in XCiT's form over 16×16 patches: (B, in_chans, H, W) → (B, num_classes).

    Args:
        attention: ``sima``, or ``xca`` for cross-covariance attention; class attention follows it.
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that a quarter of it is a stage.
        num_heads: heads of the attention.
        norm_all: whether class attention's second norm changes all tokens or the class token alone.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth, the same in every block as in the official code.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, ``dim`` not one of 8, or an unknown ``attention``.
    """

    checkpoint_layout = CheckpointLayout(renames=((r"^(blocks\.\d+)\.attn\.proj\.", r"\1.proj."),))

    def __init__(
        self,
        attention: str,
        dim: int,
        depth: int,
        num_heads: int,
        norm_all: bool = True,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_depth(depth)
        if dim % 8:
            raise ValueError(f"dim must be a multiple of 8; got {dim}")
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(_ATTENTIONS)}; got {attention!r}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(in_chans, dim)
        self.pos_embeder = FourierPositions(dim)
        build = _ATTENTIONS[attention]
        eta = 1.0 if depth <= 12 else 1e-5  # what the scales of the residuals start with, as in the official code
        self.blocks = nn.ModuleList(
            Block(dim, build(dim, num_heads), eta=eta, drop_path_rate=drop_path_rate) for _ in range(depth)
        )
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=0.02))
        is_xca = attention == "xca"
        self.cls_attn_blocks = nn.ModuleList(
            ClassAttentionBlock(dim, num_heads, softmax=is_xca, norm_all=norm_all, eta=eta) for _ in range(2)
        )
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        for block in self.blocks:
            x = block(x)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)), dim=1)
        *others, last = self.cls_attn_blocks
        for block in others:
            x = block(x)
        assert isinstance(last, ClassAttentionBlock)
        return self.head(self.norm(last.last(x)[:, 0]))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Make four maps (B, H, W, C), one after each quarter of the depth; all have one size."""
        return run_quarters(self.blocks, self._embed(x))

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Count the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        embedding, grid = self.patch_embed.macs(resolution)
        blocks: Iterable[Any] = self.blocks
        class_blocks: Iterable[Any] = self.cls_attn_blocks
        return total_macs(
            embedding,
            self.pos_embeder.macs(grid),
            *(block.macs(grid) for block in blocks),
            *(block.macs(grid[0] * grid[1] + 1) for block in class_blocks),
            head_macs(self.head),
        )

    def _embed(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans)
        x = self.patch_embed(x.permute(0, 2, 3, 1))
        return x + self.pos_embeder((x.shape[1], x.shape[2]))


_ATTENTIONS: dict[str, type[SimaAttention] | type[CrossCovarianceAttention]] = {
    "sima": SimaAttention,
    "xca": CrossCovarianceAttention,
}
