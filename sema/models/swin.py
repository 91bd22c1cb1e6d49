"""Swin: softmax attention in shifted windows; and the same network with linear attentions in its early stages.

Papers: Swin Transformer, arXiv 2103.14030; FLatten Transformer, arXiv 2308.00442; InLine attention, arXiv 2412.06590.

Legend: B batch, H W token grid of the stage at hand, C channels, w window size.

    image (B, in_chans, H, W) → patches of 4×4, LN → four stages of blocks, patch merging between → LN → mean → head
    block:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x))
    patch merging:  four neighbours → LN → Linear 4C → 2C

Every second block of windows is shifted by ⌊w/2⌋. Maps are (B, H, W, C) throughout.

Deviations from the papers: any image size. An image that 4 does not divide is padded with zeros at the bottom and
right, and so is an odd map before it is merged; windows at the edge of a map are smaller instead of padded, which gives
the same numbers, see ``sema.attention.window``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.attention.focused import FocusedLinearAttention
from sema.attention.inline import InLineAttention
from sema.attention.window import WindowAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image
from sema.layers.mlp import Mlp
from sema.layers.tokens import token_mean
from sema.macs import Grid, Macs, linear_macs
from sema.models.backbone import PatchEmbed, Stage, StagedBackbone, head_macs, init_linear

_WINDOW_SIZE = 7
_HEAD_DIM = 32
#: Side of the first stage's map at 224.
_BASE_GRID = 56


class SwinPatchEmbed(PatchEmbed):
    """Patches of 4×4 with a layer norm: (B, in_chans, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(in_chans, dim, patch_size=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        right, bottom = -x.shape[3] % self.patch_size, -x.shape[2] % self.patch_size
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        # An image in NCHW leaves the convolution in NCHW: one copy here keeps every block channels-last in memory.
        return self.norm(super().forward(x).contiguous())

    def macs(self, resolution: tuple[int, int]) -> tuple[Macs, Grid]:
        height, width = (-(-side // self.patch_size) * self.patch_size for side in resolution)
        return super().macs((height, width))


class PatchMerging(nn.Module):
    """Four neighbours side by side, LN, and a linear map: (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = x.shape[1] % 2, x.shape[2] % 2
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        # The official order of the neighbours: down each column first.
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid`` tokens, and the size of what it gives."""
        halved = (-(-grid[0] // 2), -(-grid[1] // 2))
        return linear_macs(halved[0] * halved[1], self.reduction.in_features, self.reduction.out_features), halved


class Block(nn.Module):
    """Pre-norm block: attention and MLP, each with a residual."""

    def __init__(self, dim: int, attention: Attention, *, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.proj(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on a map of ``grid`` tokens."""
        tokens, dim = grid[0] * grid[1], self.proj.in_features
        return self.attn.macs(grid).plus(linear_macs(tokens, dim, dim)).plus(self.mlp.macs(tokens))


class Swin(StagedBackbone):
    """Four stages of window attention and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage, a multiple of 32; each stage doubles them. A head has 32.
        depths: blocks of each stage.
        attentions: of each stage: ``window``, ``focused`` or ``inline``. Focused linear attention and InLine attention
            span the whole map. The official windows of 56 tokens do so at 224, and are widened to the map at 384.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
    """

    checkpoint_layout = CheckpointLayout(
        renames=((r"^(layers\.\d+\.blocks\.\d+)\.attn\.proj\.", r"\1.proj."),),
        derived=(r"\.relative_position_index$", r"\.attn_mask$"),
    )

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        attentions: Sequence[str],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans=in_chans, num_classes=num_classes)
        self.patch_embed = SwinPatchEmbed(in_chans, dim)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        for index, (depth, name) in enumerate(zip(depths, attentions, strict=True)):
            width, grid = dim * 2**index, (_BASE_GRID >> index, _BASE_GRID >> index)
            blocks = [
                Block(width, _attention(name, width, grid, shifted=bool(i % 2)), drop_path_rate=next(rates))
                for i in range(depth)
            ]
            self.layers.append(Stage(blocks, PatchMerging(width) if index < len(depths) - 1 else None))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(init_linear)

    def embed(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans)
        return self.patch_embed(x)

    def embed_macs(self, resolution: tuple[int, int]) -> tuple[Macs, Grid]:
        return self.patch_embed.macs(resolution)

    def classify(self, x: Tensor) -> Tensor:
        return self.head(token_mean(self.norm(x)).flatten(1))

    def classify_macs(self, grid: Grid) -> Macs:
        return head_macs(self.head)


def _attention(name: str, dim: int, grid: Grid, *, shifted: bool) -> Attention:
    """Build the attention of a block; focused attention stores its positions for ``grid``."""
    num_heads = dim // _HEAD_DIM
    if name == "focused":
        return FocusedLinearAttention(dim, num_heads, token_grid=grid)
    if name == "inline":
        return InLineAttention(dim, num_heads)
    if name != "window":
        raise ValueError(f"attentions must be window, focused or inline; got {name!r}")
    shift_size = _WINDOW_SIZE // 2 if shifted else 0
    return WindowAttention(dim, num_heads, window_size=_WINDOW_SIZE, shift_size=shift_size, relative_position_bias=True)
