"""MILA's macro design around any attention, shared by SEMA and MILA models and every like-for-like comparison.

Paper: MILA, arXiv 2405.16605 (backbone), SEMA, arXiv 2506.08297 (attention).

Legend: B batch, H W token grid of the stage, N = H·W, C channels.

    image (B, in_chans, H, W) → stem, ÷4 → stages of blocks, ÷2 and 2C between them → norm → mean → classifier

    block:  x ← x + CPE(x);  n = LN(x)
            x ← x + out_proj(attn(SiLU(dwc(in_proj n))) · SiLU(act_proj n))
            x ← x + CPE(x);  x ← x + MLP(LN(x))

Everything but ``attn`` is the same with every attention. Maps are (B, H, W, C) from the stem on, the native layout of
channels_last convolutions: with a channels_last input, nothing is ever transposed in memory.

Module names are those of the official MILA code, so that its state dicts load. Its derived ``rotations`` buffers have
no counterpart, because the rotation follows the input's grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention import ATTENTIONS
from sema.attention.base import Attention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.conv import DepthwiseConv2d
from sema.layers.counted import chain_macs, layer_macs
from sema.layers.downsample import Downsample
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import size_pair
from sema.layers.mlp import Mlp
from sema.layers.pooling import create_pooling
from sema.layers.positions import ConditionalPositionalEncoding
from sema.layers.segmentation import SegmentationHead
from sema.layers.stem import Stem
from sema.macs import Grid, Macs, linear_macs
from sema.models.backbone import Stage, StagedBackbone, init_linear, stages_info


class Block(nn.Module):
    """MILA's block, (B, H, W, C) → (B, H, W, C), around an attention."""

    def __init__(self, dim: int, attention: Attention, *, drop_path_rate: float) -> None:
        super().__init__()
        self.cpe1 = ConditionalPositionalEncoding(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, dim)
        self.act_proj = nn.Linear(dim, dim)
        self.dwc = DepthwiseConv2d(dim)
        self.attn = attention
        self.out_proj = nn.Linear(dim, dim)
        self.cpe2 = ConditionalPositionalEncoding(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cpe1(x)
        normed = self.norm1(x)
        mixed = self.attn(F.silu(self.dwc(self.in_proj(normed))))
        x = x + self.drop_path(self.out_proj(mixed * F.silu(self.act_proj(normed))))
        x = self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        tokens, dim = grid[0] * grid[1], self.norm1.normalized_shape[0]
        projections = linear_macs(tokens, dim, 3 * dim)  # in_proj, act_proj, out_proj
        others, _ = chain_macs((self.cpe1, self.dwc, self.attn, self.cpe2, self.mlp), grid)
        return projections.plus(others), grid


class HierarchicalBackbone(StagedBackbone):
    """Stages of MILA's blocks around any attention, and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        stages: (channels C, heads, blocks) of each; C doubles from stage to stage.
        attention: a name in the registry of attentions.
        attention_options: options that the attention's class declares; the same in every stage. ``num_heads`` sets
            the heads of every stage.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        img_size: side in pixels, or (H, W), for which parameters tied to positions are stored, and at which scaled
            windows have ``window_size``. Other attentions ignore it; every model runs at other sizes, too.
        head: how the last map becomes one vector: ``mean`` (MILA's), ``max`` or ``attention``, see
            ``sema.layers.pooling``. ``fpn`` instead computes logits for each pixel from all maps,
            (B, num_classes, H, W), see ``sema.layers.segmentation``.

    Raises:
        ValueError: dimensions that do not fit together.
        sema.registry.UnknownNameError: no attention of that name.
        TypeError: an option that this attention does not declare.
    """

    checkpoint_layout = CheckpointLayout(derived=(r"\.rotations$",))
    min_resolution = 32  # every stage then has a token

    def __init__(
        self,
        stages: Sequence[tuple[int, int, int]],
        *,
        attention: str,
        attention_options: Mapping[str, Any] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        head: str = "mean",
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        if any(2 * one[0] != following[0] for one, following in itertools.pairwise(stages)):
            raise ValueError(f"each stage needs twice the channels of the one before; got {tuple(stages)}")
        self.patch_embed = Stem(in_chans, stages[0][0])
        rates = iter(drop_path_rates(drop_path_rate, sum(depth for *_, depth in stages)))
        uses_token_grid = ATTENTIONS.load(attention).uses_token_grid
        grid = [-(-side // 4) for side in size_pair(img_size)]
        self.layers = nn.ModuleList()
        self.feature_info = stages_info("layers.{}.blocks", [dim for dim, *_ in stages])
        for dim, num_heads, depth in stages:
            options = dict(attention_options or {})
            heads = options.pop("num_heads", num_heads)
            if uses_token_grid:
                options.setdefault("token_grid", (grid[0], grid[1]))
            if options.get("windows") == "scaled":
                options["windows"] = (grid[0], grid[1])
            attentions = (ATTENTIONS.build(attention, dim, heads, **options) for _ in range(depth))
            blocks = [Block(dim, built, drop_path_rate=next(rates)) for built in attentions]
            self.layers.append(Stage(blocks, Downsample(dim) if len(self.layers) + 1 < len(stages) else None))
            grid = [-(-side // 2) for side in grid]
        if head == "fpn":
            self.head = SegmentationHead([dim for dim, *_ in stages], num_classes)
        else:
            dim, num_heads, _ = stages[-1]
            self.norm = nn.LayerNorm(dim)
            self.pooling = create_pooling(head, dim=dim, num_heads=num_heads)
            self.head = nn.Linear(dim, num_classes)
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.head, SegmentationHead):
            return self.head(self.forward_features(x), (x.shape[2], x.shape[3]))
        return super().forward(x)

    def macs(self, resolution: tuple[int, int]) -> Macs:
        *_, head = self.children()  # if the head was deleted: the layers
        if not isinstance(head, SegmentationHead):
            return super().macs(resolution)
        total, grid = layer_macs(self.patch_embed, resolution)
        grids = []
        for stage in self.layers:
            grids.append(grid)
            macs, grid = layer_macs(stage, grid)
            total = total.plus(macs)
        return total.plus(head.macs(grids))

    def init_weights(self) -> None:
        """Draw the weights of linear maps."""
        self.apply(init_linear)


class NarrowBackbone(HierarchicalBackbone):
    """The same with few channels: linear maps start with a standard deviation of 1/√fan-in.

    The usual 0.02 suits hundreds of channels; with 32, the model would learn nothing for hundreds of steps.
    """

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
