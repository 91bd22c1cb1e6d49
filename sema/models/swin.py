"""Swin: softmax attention in shifted windows; also the same network with linear attentions in its early stages.

Papers: Swin Transformer, arXiv 2103.14030; FLatten Transformer, arXiv 2308.00442; InLine attention, arXiv 2412.06590.

Legend: B batch, H W token grid of the stage, C channels, w window size.

    image (B, in_chans, H, W) → patches of 4×4, LN → four stages of blocks, patch merging between → LN → mean → head
    block:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x))
    patch merging:  four neighbours → LN → Linear 4C → 2C

Every second block of windows is shifted by ⌊w/2⌋. Maps are (B, H, W, C) throughout.

Deviations from the papers: any image size. If 4 does not divide the image, it is padded with zeros at the bottom and
right, and so is an odd map before it is merged, as in the authors' dense code. If 7 does not divide a map, its windows
have one of three forms, see ``sema.attention.window``; ``windows="padded"`` is that code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention import ATTENTIONS
from sema.attention.window import WindowAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.counted import layer_macs
from sema.layers.drop_path import drop_path_rates
from sema.layers.pooling import MeanPooling
from sema.layers.windows import pad_map
from sema.macs import Grid, Macs, linear_macs
from sema.models.backbone import PatchEmbed, Stage, StagedBackbone, TransformerBlock, init_linear, stages_info

_WINDOW_SIZE = 7
_HEAD_DIM = 32
#: Side of the first stage's map at 224.
_BASE_GRID = 56


class SwinPatchEmbed(PatchEmbed):
    """Patches of 4×4 with a layer norm: (B, H, W, in_chans) → (B, ⌈H/4⌉, ⌈W/4⌉, C)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__(in_chans, dim, patch_size=4)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        right, bottom = -x.shape[3] % self.patch_size, -x.shape[2] % self.patch_size
        if right or bottom:
            x = F.pad(x, (0, right, 0, bottom))
        # An NCHW image leaves the convolution in NCHW: one copy here keeps every block channels-last in memory.
        return self.norm(super().forward(x).contiguous())

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        height, width = (-(-side // self.patch_size) * self.patch_size for side in grid)
        return super().macs((height, width))


class PatchMerging(nn.Module):
    """Four neighbours side by side, LN, and a linear map: (B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_map(x, (x.shape[1] + x.shape[1] % 2, x.shape[2] + x.shape[2] % 2))
        # The official order of the neighbours: down each column first.
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Count the MACs on a map of ``grid`` tokens; also return the grid of the result."""
        return layer_macs(self.reduction, (-(-grid[0] // 2), -(-grid[1] // 2)))


class PaddedBlock(TransformerBlock):
    """The block of the authors' dense code: it pads its map to whole windows and projects the padding, too."""

    def __init__(self, dim: int, attention: WindowAttention, *, drop_path_rate: float) -> None:
        super().__init__(dim, attention, drop_path_rate=drop_path_rate)
        self.rule = attention.rule

    def mix(self, x: Tensor, *grid: Grid) -> Tensor:
        height, width = x.shape[1:3]
        return super().mix(pad_map(x, self.rule.layout((height, width)).grid), *grid)[:, :height, :width]

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        padded, dim = self.rule.layout(grid).grid, self.proj.in_features
        padding = linear_macs(padded[0] * padded[1] - grid[0] * grid[1], dim, dim)
        return super().macs(grid)[0].plus(padding), grid


class Swin(StagedBackbone):
    """Four stages of window attention and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage, a multiple of 32; each stage doubles them. A head has 32.
        depths: blocks of each stage.
        attentions: one per stage: ``window``, ``focused`` or ``inline``. Focused linear attention and InLine attention
            span the whole map. So do the official windows of 56 tokens at 224; at 384 they are widened to the map.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        windows: form of the windows if 7 does not divide a map: ``masked``, ``padded``, or ``scaled`` with
            ⌈image side / 32⌉ tokens a side; see ``sema.attention.window``. Linear attentions have no windows.
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
        windows: str = "masked",
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        self.patch_embed = SwinPatchEmbed(in_chans, dim)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        self.feature_info = stages_info("layers.{}.blocks", [dim * 2**index for index in range(len(depths))])
        for index, (depth, name) in enumerate(zip(depths, attentions, strict=True)):
            width, grid = dim * 2**index, (_BASE_GRID >> index, _BASE_GRID >> index)
            block = PaddedBlock if name == "window" and windows == "padded" else TransformerBlock
            mixers = (_attention(name, width, grid, shifted=bool(i % 2), windows=windows) for i in range(depth))
            blocks = [block(width, mixer, drop_path_rate=next(rates)) for mixer in mixers]
            self.layers.append(Stage(blocks, PatchMerging(width) if index < len(depths) - 1 else None))
        self.norm = nn.LayerNorm(width)
        self.pooling = MeanPooling()
        self.head = nn.Linear(width, num_classes)
        self.apply(init_linear)


def _attention(name: str, dim: int, grid: Grid, *, shifted: bool, windows: str) -> Any:
    """Build the attention of a block whose map is ``grid`` at 224."""
    shift_size = _WINDOW_SIZE // 2 if shifted else 0
    window = {"window_size": _WINDOW_SIZE, "shift_size": shift_size, "relative_position_bias": True}
    options: dict[str, dict[str, Any]] = {
        "window": {**window, "windows": grid if windows == "scaled" else windows},
        "focused": {"token_grid": grid},
        "inline": {},
    }
    if name not in options:
        raise ValueError(f"attentions must be window, focused or inline; got {name!r}")
    return ATTENTIONS.build(name, dim, dim // _HEAD_DIM, **options[name])
