"""The XCiT form of a vision transformer, with cross-covariance attention (XCiT) or SimA.

Papers: XCiT, arXiv 2106.09681; SimA, arXiv 2206.08898, whose official code (UCDvision/sima) builds on XCiT's.

Legend: B batch, H W grid of patches, N = H·W, C channels.

    image (B, in_chans, H, W) → four 3×3 convolutions of stride 2, BN, GELU between: ÷16 → + Fourier positions → blocks
    block:  x ← x + γ1·proj(attn(LN(x)));  x ← x + γ3·LPI(LN(x));  x ← x + γ2·MLP(LN(x))
    → a class token in front → two class-attention blocks → LN → class token → head

LPI is two depthwise 3×3 convolutions with GELU and BN between them. Maps are (B, H, W, C) up to the class token.

Deviations from the papers: none. Any image size works: the convolutions output ⌈H/16⌉ × ⌈W/16⌉ patches, and the
positions follow that grid. In training mode the official SimA code returns its logits twice, this one once.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
from torch import Tensor, nn

from sema.attention import ATTENTIONS
from sema.attention.base import Attention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.class_attention import ClassAttentionBlock
from sema.layers.conv import DepthwiseConv2d, MapBatchNorm2d, MapConv2d
from sema.layers.counted import Counted, chain_macs, layer_macs
from sema.layers.positions import FourierPositions
from sema.macs import Macs, total_macs
from sema.models.backbone import Backbone, TransformerBlock, init_linear, quarter_of, quarters_info, run_quarters

_LAYER_NORM_EPS = 1e-6
_ATTENTIONS = ("sima", "xca")


class Block(TransformerBlock):
    """Attention, local patch interaction and MLP, each pre-norm with a residual scaled by channel."""

    def __init__(self, dim: int, attention: Attention, *, eta: float, drop_path_rate: float) -> None:
        super().__init__(dim, attention, norm_eps=_LAYER_NORM_EPS, drop_path_rate=drop_path_rate)
        self.norm3 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.local_mp = nn.Sequential(  # LPI
            OrderedDict(conv1=DepthwiseConv2d(dim), act=nn.GELU(), bn=MapBatchNorm2d(dim), conv2=DepthwiseConv2d(dim))
        )
        self.gamma1, self.gamma2, self.gamma3 = (nn.Parameter(torch.full((dim,), eta)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path(self.gamma1 * self.proj(self.attn(self.norm1(x))))
        x = x + self.drop_path(self.gamma3 * self.local_mp(self.norm3(x)))
        return x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))


class PatchEmbed(Counted):
    """Four 3×3 convolutions of stride 2 with batch norm, GELU between: (B, H, W, in_chans) → (B, ⌈H/16⌉, ⌈W/16⌉, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        widths = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        self.proj = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.proj.append(nn.Sequential(MapConv2d(before, after, bias=False), MapBatchNorm2d(after)))
            if after != dim:
                self.proj.append(nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class XCiT(Backbone):
    """Transformer in XCiT's form over 16×16 patches: (B, in_chans, H, W) → (B, num_classes).

    Args:
        attention: ``sima``, or ``xca`` for cross-covariance attention; it also sets the kind of class attention.
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that each quarter is a stage.
        num_heads: heads of the attention.
        norm_all: apply class attention's second norm to all tokens, not only to the class token.
        num_classes, in_chans: see ``Backbone``.
        drop_path_rate: stochastic depth, the same in every block, as in the official code.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, ``dim`` is not a multiple of 8, or ``attention`` is unknown.
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
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        self.quarter = quarter_of(depth)
        self.feature_info = quarters_info("blocks", dim, self.quarter)
        if dim % 8:
            raise ValueError(f"dim must be a multiple of 8; got {dim}")
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(_ATTENTIONS)}; got {attention!r}")
        self.patch_embed = PatchEmbed(in_chans, dim)
        self.pos_embeder = FourierPositions(dim)
        eta = 1.0 if depth <= 12 else 1e-5  # initial scale of the residuals, as in the official code
        self.blocks = nn.ModuleList(
            Block(dim, ATTENTIONS.build(attention, dim, num_heads), eta=eta, drop_path_rate=drop_path_rate)
            for _ in range(depth)
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
        """Return four maps (B, H, W, C) of the same size, one after each quarter of the depth."""
        return run_quarters(self.blocks, self._embed(x), self.quarter)

    def end_at_map(self, index: int) -> None:
        super().end_at_map(index)
        del self.cls_token  # it joins after the last map

    def macs(self, resolution: tuple[int, int]) -> Macs:
        embedding, positions, blocks, *classifier = self.children()
        total, grid = chain_macs((embedding, positions, blocks), resolution)
        if not classifier:
            return total
        gathering, _ = chain_macs(self.cls_attn_blocks, (1, grid[0] * grid[1] + 1))
        return total_macs(total, gathering, layer_macs(self.head, (1, 1))[0])

    def _embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(self.to_map(x))
        return x + self.pos_embeder((x.shape[1], x.shape[2]))
