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

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import Attention, token_mean
from sema.attention.focused import FocusedLinearAttention
from sema.attention.inline import InLineAttention
from sema.attention.window import WindowAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image
from sema.layers.mlp import Mlp
from sema.macs import Grid, Macs, linear_macs
from sema.models.vit import PatchEmbed

_WINDOW_SIZE = 7

#: (channels, heads, index of the block in its stage) → attention.
BuildAttention = Callable[[int, int, int], Attention]


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
        return self.norm(super().forward(x).contiguous())  # type: ignore[no-any-return]

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
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))  # type: ignore[no-any-return]

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
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on a map of ``grid`` tokens."""
        tokens, dim = grid[0] * grid[1], self.proj.in_features
        return self.attn.macs(grid).plus(linear_macs(tokens, dim, dim)).plus(self.mlp.macs(tokens))


class Stage(nn.Module):
    """Blocks at one size, then patch merging where another stage follows."""

    def __init__(self, blocks: Sequence[Block], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return x if self.downsample is None else self.downsample(x)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid`` tokens, and the size of the map that it gives."""
        total = Macs()
        for block in self.blocks:
            assert isinstance(block, Block)
            total = total.plus(block.macs(grid))
        if self.downsample is None:
            return total, grid
        step, grid = self.downsample.macs(grid)
        return total.plus(step), grid


class Swin(nn.Module):
    """Four stages of window attention and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        num_heads: heads of each stage.
        attentions: what builds the attention of each stage's blocks.
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
        *,
        dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        attentions: Sequence[BuildAttention],
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = SwinPatchEmbed(in_chans, dim)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        for index, (depth, heads, build) in enumerate(zip(depths, num_heads, attentions, strict=True)):
            width = dim * 2**index
            blocks = [Block(width, build(width, heads, i), drop_path_rate=next(rates)) for i in range(depth)]
            self.layers.append(Stage(blocks, PatchMerging(width) if index < len(depths) - 1 else None))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans)
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(token_mean(self.norm(x)).flatten(1))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the map of each stage before patch merging: four maps (B, H, W, C)."""
        check_image(x, in_chans=self.in_chans)
        x = self.patch_embed(x)
        maps = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            x = maps[-1] if stage.downsample is None else stage.downsample(maps[-1])
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = self.patch_embed.macs(resolution)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            stage_macs, grid = stage.macs(grid)
            total = total.plus(stage_macs)
        return total.plus(linear_macs(1, self.head.in_features, self.head.out_features))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _shifted_windows(dim: int, num_heads: int, index: int) -> Attention:
    return WindowAttention(
        dim,
        num_heads,
        window_size=_WINDOW_SIZE,
        shift_size=_WINDOW_SIZE // 2 if index % 2 else 0,
        relative_position_bias=True,
    )


def swin_tiny(*, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.2) -> Swin:
    """Swin-T: softmax attention in shifted 7×7 windows; 28.3 M parameters.

    The arguments are those of ``Swin``.
    """
    return Swin(
        dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        attentions=(_shifted_windows,) * 4,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )


def swin_small(*, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.3) -> Swin:
    """Swin-S: softmax attention in shifted 7×7 windows; 49.6 M parameters.

    The arguments are those of ``Swin``.
    """
    return Swin(
        dim=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        attentions=(_shifted_windows,) * 4,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )


def swin_base(*, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.5) -> Swin:
    """Swin-B: softmax attention in shifted 7×7 windows; 87.8 M parameters.

    The arguments are those of ``Swin``.
    """
    return Swin(
        dim=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        attentions=(_shifted_windows,) * 4,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )


def _focused(side: int) -> BuildAttention:
    """Focused linear attention over the whole map, its positions stored for the map at 224."""
    return lambda dim, num_heads, index: FocusedLinearAttention(dim, num_heads, token_grid=(side, side))


def flatten_swin_tiny(*, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.2) -> Swin:
    """FLatten-Swin-T: focused linear attention in stages 1 and 2, shifted windows in 3 and 4; 29.2 M parameters.

    The arguments are those of ``Swin``. The official windows of 56 tokens are the whole map at 224, and at 384 the
    official code widens them to the whole map again: here the linear attention always spans the map.
    """
    return Swin(
        dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        attentions=(_focused(56), _focused(28), _shifted_windows, _shifted_windows),
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )


def inline_swin_tiny(*, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.2) -> Swin:
    """InLine-Swin-T: InLine attention in stages 1 to 3, windows in stage 4; 29.2 M parameters.

    The arguments are those of ``Swin``. As in ``flatten_swin_tiny`` the linear attention always spans the map.
    """

    def inline(dim: int, num_heads: int, index: int) -> Attention:
        return InLineAttention(dim, num_heads)

    return Swin(
        dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        attentions=(inline, inline, inline, _shifted_windows),
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
    )
