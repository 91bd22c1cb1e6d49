"""What families of backbones share: stages of shrinking maps, tokens of one size with a class token, first weights.

Legend: B batch, H W token grid, N = H·W, C channels, P patch size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sema.layers.image import check_image, size_pair
from sema.layers.positions import LearnedPositions
from sema.macs import Grid, Macs, conv_macs, linear_macs, total_macs


class Stage(nn.Module):
    """Blocks at one size, then the step to the next size where there is one: maps (B, H, W, C)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.blocks(x))

    def step(self, x: Tensor) -> Tensor:
        """Bring the map that the last block leaves to the next size."""
        return x if self.downsample is None else self.downsample(x)

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Count the MACs on a map of ``grid`` tokens; with the size of the map that it gives."""
        blocks: Iterable[Any] = self.blocks
        total = total_macs(*(block.macs(grid) for block in blocks))
        if self.downsample is None:
            return total, grid
        downsample: Any = self.downsample
        step, grid = downsample.macs(grid)
        return total.plus(step), grid


class StagedBackbone(nn.Module):
    """Stages of maps, each half as large as the one before, and a classifier: (B, in_chans, H, W) → (B, num_classes).

    A family gives ``layers``, a list of ``Stage``, and the methods that raise NotImplementedError here.
    """

    layers: nn.ModuleList

    def __init__(self, *, in_chans: int, num_classes: int) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.classify(x)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Make each stage's map (B, H, W, C) as its last block leaves it, before the step to the next size."""
        x = self.embed(x)
        maps = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            x = stage.step(maps[-1])
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Count the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = self.embed_macs(resolution)
        for stage in self.layers:
            assert isinstance(stage, Stage)
            macs, grid = stage.macs(grid)
            total = total.plus(macs)
        return total.plus(self.classify_macs(grid))

    def embed(self, x: Tensor) -> Tensor:
        """Turn images into the first map: (B, in_chans, H, W) → (B, H', W', C)."""
        raise NotImplementedError

    def embed_macs(self, resolution: tuple[int, int]) -> tuple[Macs, Grid]:
        """Count the MACs of ``embed``; with the size of the map that it gives."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Turn the last map into logits: (B, H, W, C) → (B, num_classes)."""
        raise NotImplementedError

    def classify_macs(self, grid: Grid) -> Macs:
        """Count the MACs of ``classify`` on a map of ``grid`` tokens."""
        raise NotImplementedError


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) → (B, ⌊H/P⌋, ⌊W/P⌋, C): one linear map of each P×P patch; what is left over is left out."""

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)

    def macs(self, resolution: tuple[int, int]) -> tuple[Macs, Grid]:
        """Count the MACs on an image of ``resolution`` pixels; with the token grid that it gives."""
        grid = (resolution[0] // self.patch_size, resolution[1] // self.patch_size)
        return conv_macs(grid, self.proj.in_channels, self.proj.out_channels, self.patch_size), grid


class TokenBackbone(nn.Module):
    """Tokens of 16×16 patches and a class token, with learned positions: what ViT and Vim begin with.

    Args:
        dim: channels C.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        img_size: side in pixels, or (H, W), for which positions are stored; any other size interpolates them.
        class_in_middle: the class token has index ⌊N/2⌋, otherwise 0.

    Raises:
        ValueError: ``img_size`` is not a multiple of 16.
    """

    def __init__(
        self, dim: int, *, num_classes: int, in_chans: int, img_size: int | tuple[int, int], class_in_middle: bool
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size=16)
        height, width = (side // 16 for side in size_pair(img_size, multiple_of=16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self._positions = LearnedPositions((height, width), class_in_middle=class_in_middle)

    def embed(self, x: Tensor) -> tuple[Tensor, int, Grid]:
        """Make the tokens with their positions, (B, 1 + N, C); with the class token's index and the patches' grid."""
        check_image(x, in_chans=self.in_chans, min_resolution=self.patch_embed.patch_size)
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        index = x.shape[1] // 2 if self._positions.class_in_middle else 0
        x = torch.cat((x[:, :index], self.cls_token.expand(x.shape[0], -1, -1), x[:, index:]), dim=1)
        return x + self._positions(self.pos_embed, grid, training=self.training), index, grid

    def fit_stored(self, name: str, stored: Tensor) -> Tensor:
        """Accept positions of another grid, see ``sema.checkpoint_layout``."""
        if name != "pos_embed":
            raise ValueError(f"{tuple(stored.shape)} in the checkpoint is not what {name} holds")
        return self._positions.fit_stored(stored, self.pos_embed)


def check_depth(depth: int) -> None:
    """Refuse a depth whose quarter is not a stage.

    Raises:
        ValueError: ``depth`` is not a positive multiple of 4.
    """
    if depth < 4 or depth % 4:
        raise ValueError(f"depth must be a positive multiple of 4; got {depth}")


def run_quarters(blocks: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Run ``blocks`` and keep what each quarter of them leaves."""
    kept = []
    for index, block in enumerate(blocks, start=1):
        x = block(x)
        if index % (len(blocks) // 4) == 0:
            kept.append(x)
    return kept


def init_linear(module: nn.Module) -> None:
    """Draw the weights of a linear map with a deviation of 0.02 and zero its bias; leave other modules as they are."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def head_macs(head: nn.Linear) -> Macs:
    """Count the MACs of a classifier on one vector."""
    return linear_macs(1, head.in_features, head.out_features)
