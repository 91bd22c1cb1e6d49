"""Parts that backbones share: stages of shrinking maps, tokens of one size with a class token, initial weights.

Legend: B batch, H W token grid, N = H·W, C channels, P patch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.layers.counted import Counted, chain_macs, layer_macs
from sema.layers.drop_path import DropPath
from sema.layers.image import check_image, size_pair
from sema.layers.mlp import Mlp
from sema.layers.positions import stored_grid
from sema.layers.table_cache import TableCache
from sema.macs import Grid, Macs, linear_macs, total_macs


class Backbone(nn.Module):
    """Base class of every model: (B, in_chans, H, W) → (B, num_classes).

    Its children are in the order in which they run, so that ``macs`` can add them up. The ``drop_path_rate`` of a
    family is the stochastic depth of its last block; it rises linearly from 0 at the first.

    Args:
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
    """

    #: Smallest height and width in pixels.
    min_resolution: ClassVar[int] = 1
    #: The maps of ``forward_features`` in timm's terms: channels ``num_chs``, stride ``reduction``, and the ``module``
    #: that makes the map.
    feature_info: list[dict[str, Any]]

    def __init__(self, *, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans

    def to_map(self, image: Tensor) -> Tensor:
        """View an image batch (B, in_chans, H, W) as a map (B, H, W, in_chans)."""
        check_image(image, in_chans=self.in_chans, min_resolution=self.min_resolution)
        return image.permute(0, 2, 3, 1)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute the maps (B, H, W, C) that ``feature_info`` describes."""
        raise NotImplementedError

    def end_at_map(self, index: int) -> None:
        """Delete the layers after map ``index``, including the classifier; ``forward_features`` then ends there."""
        module: nn.Module = self
        for name in self.feature_info[index]["module"].split("."):
            names = [child for child, _ in module.named_children()]
            for later in names[names.index(name) + 1 :]:
                delattr(module, later)
            module = module.get_submodule(name)

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Count the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        return chain_macs(self.children(), resolution)[0]


class Stage(Counted):
    """Blocks at one size, then the step to the next size if there is one: maps (B, H, W, C)."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        return self.step(self.blocks(x))

    def step(self, x: Tensor) -> Tensor:
        """Downsample the last block's map to the next size, if there is one."""
        return x if self.downsample is None else self.downsample(x)


class StagedBackbone(Backbone):
    """Stages of maps, each half as large as the one before, and a classifier.

    A family defines ``patch_embed``, which turns the image into the first map; ``layers``, a list of ``Stage``; and
    ``norm``, ``pooling`` and ``head``, which classify the last map.
    """

    patch_embed: nn.Module
    layers: nn.ModuleList
    norm: nn.Module
    pooling: nn.Module
    head: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(self.to_map(x))
        for stage in self.layers:
            x = stage(x)
        return self.classify(x)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute each stage's map (B, H, W, C): the output of its last block, before the step to the next size."""
        x = self.patch_embed(self.to_map(x))
        maps = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            if len(maps) < len(self.layers):
                x = stage.step(maps[-1])
        return maps

    def classify(self, x: Tensor) -> Tensor:
        """Turn the last map into logits: (B, H, W, C) → (B, num_classes)."""
        return self.head(self.pooling(self.norm(x)))


class TransformerBlock(nn.Module):
    """Pre-norm block on maps (B, H, W, C): attention and MLP, each with a residual."""

    mlp_class: ClassVar[type[Mlp]] = Mlp

    def __init__(self, dim: int, attention: nn.Module, *, norm_eps: float = 1e-5, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = self.mlp_class(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, *grid: Grid) -> Tensor:
        x = x + self.drop_path(self.mix(self.norm1(x), *grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def mix(self, x: Tensor, *grid: Grid) -> Tensor:
        """Mix the normed tokens and project the result."""
        return self.proj(self.attn(x, *grid))

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        dim = self.norm1.normalized_shape[0]
        projection = linear_macs(grid[0] * grid[1], dim, dim)
        others = (child for child in self.children() if child is not self.proj)
        return projection.plus(chain_macs(others, grid)[0]), grid


class PatchEmbed(Counted):
    """(B, in_chans, H, W) → (B, ⌊H/P⌋, ⌊W/P⌋, C): one linear map of each P×P patch; the remainder is dropped."""

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class TokenBackbone(Backbone):
    """Tokens of 16×16 patches and a class token, with learned positions: the start of ViT and Vim.

    Positions are interpolated (bicubic) from their stored grid to the input's. The result for the last grid is cached
    in eval mode: interpolating at each forward pass cost DeiT-S 0.5 % at 1024. The official code does it on loading.

    Args:
        dim: channels C.
        num_classes, in_chans: see ``Backbone``.
        img_size: side in pixels, or (H, W), for which positions are stored.
        class_in_middle: put the class token at index ⌊N/2⌋ instead of 0.

    Raises:
        ValueError: ``img_size`` is not a multiple of 16.
    """

    min_resolution = 16

    def __init__(
        self, dim: int, *, num_classes: int, in_chans: int, img_size: int | tuple[int, int], class_in_middle: bool
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        self.class_in_middle = class_in_middle
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size=16)
        height, width = (side // 16 for side in size_pair(img_size, multiple_of=16))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self._built_grid = (height, width)
        self._table_cache = TableCache[Tensor]()

    def embed(self, x: Tensor) -> tuple[Tensor, int, Grid]:
        """Return the tokens with positions added, (B, 1 + N, C), the class token's index and the patches' grid."""
        check_image(x, in_chans=self.in_chans, min_resolution=self.min_resolution)
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        index = self._class_index(grid[0] * grid[1])
        x = _insert(x.flatten(1, 2), self.cls_token.expand(x.shape[0], -1, -1), index)
        return x + self.positions(grid), index, grid

    def positions(self, grid: Grid) -> Tensor:
        """Interpolate the learned positions to ``grid``: (1, 1 + N, C)."""
        if grid == stored_grid(self.pos_embed.shape[1] - 1, self._built_grid, grid):
            return self.pos_embed
        return self._table_cache((self.pos_embed,), grid, self._interpolated, training=self.training)

    def fit_stored(self, name: str, stored: Tensor) -> Tensor | None:
        """Accept positions for another grid as they are, see ``sema.checkpoint_layout``."""
        dim = self.pos_embed.shape[2]
        if name != "pos_embed":
            return None
        if stored.ndim != 3 or stored.shape[0] != 1 or stored.shape[2] != dim:
            raise ValueError(f"positions must be (1, 1 + N, {dim}); got {tuple(stored.shape)}")
        return stored

    def macs(self, resolution: tuple[int, int]) -> Macs:
        embedding, blocks, *classifier = self.children()
        total, grid = layer_macs(embedding, resolution)
        tokens = (1, grid[0] * grid[1] + 1)
        return total_macs(total, layer_macs(blocks, tokens)[0], chain_macs(classifier, (1, 1))[0])

    def _interpolated(self, grid: Grid) -> Tensor:
        table, count = self.pos_embed, self.pos_embed.shape[1] - 1
        index = self._class_index(count)
        patches = torch.cat((table[:, :index], table[:, index + 1 :]), dim=1)
        maps = torch.unflatten(patches, 1, stored_grid(count, self._built_grid)).permute(0, 3, 1, 2)  # (1, C, H, W)
        live = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        return _insert(live, table[:, index : index + 1], self._class_index(live.shape[1]))

    def _class_index(self, patches: int) -> int:
        return patches // 2 if self.class_in_middle else 0


def _insert(tokens: Tensor, token: Tensor, index: int) -> Tensor:
    return torch.cat((tokens[:, :index], token, tokens[:, index:]), dim=1)


def stages_info(module: str, channels: Sequence[int]) -> list[dict[str, Any]]:
    """Describe the maps of stages, the first of stride 4 and each half as large as the one before.

    ``module`` names a stage with ``{}`` for its index.
    """
    return [
        {"num_chs": dim, "reduction": 4 << index, "module": module.format(index)} for index, dim in enumerate(channels)
    ]


def quarters_info(blocks: str, dim: int, quarter: int) -> list[dict[str, Any]]:
    """Describe the maps after each ``quarter`` of the ``blocks``, all of stride 16."""
    return [{"num_chs": dim, "reduction": 16, "module": f"{blocks}.{quarter * end - 1}"} for end in range(1, 5)]


def quarter_of(depth: int) -> int:
    """Return the blocks in a quarter of ``depth``; ValueError if ``depth`` is not a positive multiple of 4."""
    if depth < 4 or depth % 4:
        raise ValueError(f"depth must be a positive multiple of 4; got {depth}")
    return depth // 4


def run_quarters(blocks: nn.ModuleList, x: Tensor, quarter: int) -> list[Tensor]:
    """Run ``blocks`` and collect the output of each ``quarter`` of them."""
    outputs = []
    for index, block in enumerate(blocks, start=1):
        x = block(x)
        if index % quarter == 0:
            outputs.append(x)
    return outputs


def init_linear(module: nn.Module) -> None:
    """Draw a linear map's weights with a standard deviation of 0.02 and zero its bias; skip other modules."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
