"""MILA's macro design around any attention: what the SEMA and MILA models and every like-for-like comparison share.

Paper: MILA, arXiv 2405.16605 (backbone), SEMA, arXiv 2506.08297 (attention).

Legend: B batch, H W token grid of the stage at hand, N = H·W, C channels.

    image (B, in_chans, H, W) → stem, ÷4 → stages of blocks, ÷2 and 2C between them → norm → mean → classifier

    block:  x ← x + CPE(x);  n = LN(x)
            x ← x + out_proj(attn(SiLU(dwc(in_proj n))) · SiLU(act_proj n))
            x ← x + CPE(x);  x ← x + MLP(LN(x))

Everything but ``attn`` is the same whichever attention is put in. Maps are (B, H, W, C) from the stem on, which are the
channels_last convolutions' own layout: with an input in channels_last nothing is ever transposed in memory.

Module names are those of the official MILA code, so that its state dicts load; its derived ``rotations`` buffers have
no counterpart, because the rotation comes from the live grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sema import create_attention
from sema.attention import ATTENTIONS
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.downsample import Downsample
from sema.layers.drop_path import drop_path_rates
from sema.layers.image import check_image, size_pair
from sema.layers.mila_block import Block
from sema.layers.pooling import create_pooling
from sema.layers.stem import Stem
from sema.macs import Grid, Macs, linear_macs

#: Height and width from which on every stage has a token of its own to work on.
MIN_RESOLUTION = 32


class Stage(nn.Module):
    """Blocks at one size, then the step to the next size where there is one."""

    def __init__(self, blocks: Sequence[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = self.run_blocks(x)
        return x if self.downsample is None else self.downsample(x)

    def run_blocks(self, x: Tensor) -> Tensor:
        """Run the blocks without the step to the next size."""
        for block in self.blocks:
            x = block(x)
        return x

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on one map of ``grid`` tokens, and the size of the map that it gives."""
        total = Macs()
        for block in self.blocks:
            assert isinstance(block, Block)
            total = total.plus(block.macs(grid))
        if self.downsample is None:
            return total, grid
        step, grid = self.downsample.macs(grid)
        return total.plus(step), grid


class HierarchicalBackbone(nn.Module):
    """Stages of MILA's blocks around any attention, and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        attention: a name in the registry of attentions.
        attention_options: what that attention's class declares; the same in every stage. ``num_heads`` among them puts
            as many heads into every stage instead of one for each ``head_dim`` channels.
        dims: channels C of each stage; each twice the one before.
        depths: blocks of each stage.
        head_dim: channels of one head; must divide every C.
        mlp_ratio: hidden channels of the MLP over C.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        img_size: side in pixels, or (H, W), for which attentions that tie parameters to positions store them; others
            ignore it, and no model is bound to it.
        head: how the last map becomes one vector, ``mean`` (MILA's), ``max`` or ``attention``; see
            ``sema.layers.pooling``.

    Raises:
        ValueError: dimensions that do not fit together.
        sema.registry.UnknownNameError: no attention of that name.
        TypeError: an option that this attention does not declare.
    """

    checkpoint_layout = CheckpointLayout(derived=(r"\.rotations$",))

    def __init__(
        self,
        *,
        attention: str,
        attention_options: Mapping[str, Any] | None = None,
        dims: Sequence[int],
        depths: Sequence[int],
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        head: str = "mean",
    ) -> None:
        super().__init__()
        if len(dims) != len(depths) or any(2 * a != b for a, b in itertools.pairwise(dims)):
            raise ValueError(f"each stage needs a depth and twice the channels of the one before; got {dims}, {depths}")
        if any(dim % head_dim for dim in dims):
            raise ValueError(f"head_dim must divide the channels of every stage; got {head_dim} and {tuple(dims)}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = Stem(in_chans, dims[0])
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        uses_token_grid = ATTENTIONS.load(attention).uses_token_grid
        grid = [-(-side // 4) for side in size_pair(img_size)]
        stages = []
        for index, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            options = {"num_heads": dim // head_dim, **(attention_options or {})}
            if uses_token_grid:
                options.setdefault("token_grid", (grid[0], grid[1]))
            blocks = [
                Block(
                    dim,
                    create_attention(attention, dim=dim, **options),
                    mlp_ratio=mlp_ratio,
                    drop_path_rate=next(rates),
                )
                for _ in range(depth)
            ]
            stages.append(Stage(blocks, Downsample(dim) if index + 1 < len(dims) else None))
            grid = [-(-side // 2) for side in grid]
        self.layers = nn.ModuleList(stages)
        self.norm = nn.LayerNorm(dims[-1])
        self.pooling = create_pooling(head, dim=dims[-1], num_heads=dims[-1] // head_dim)
        self.head = nn.Linear(dims[-1], num_classes)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.pooling(self.norm(x)))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return each stage's map (B, H, W, C) as its last block leaves it, before the step to the next size."""
        x = self._embed(x)
        maps = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.run_blocks(x))
            if stage.downsample is not None:
                x = stage.downsample(maps[-1])
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = self.patch_embed.macs(resolution)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            stage_macs, grid = stage.macs(grid)
            total = total.plus(stage_macs)
        return total.plus(self.pooling.macs(grid)).plus(linear_macs(1, self.head.in_features, self.head.out_features))

    def _embed(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans, min_resolution=MIN_RESOLUTION)
        # An image in NCHW leaves the stem in NCHW: one copy here keeps every block behind it channels-last in memory.
        return self.patch_embed(x).permute(0, 2, 3, 1).contiguous()  # type: ignore[no-any-return]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
