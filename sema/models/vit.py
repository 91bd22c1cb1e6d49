"""DeiT: the plain vision transformer, softmax attention over all tokens of one size; and SimA in the same network.

Paper: DeiT, arXiv 2012.12877; ViT, arXiv 2010.11929; SimA, arXiv 2206.08898.

Legend: B batch, H W token grid, N = H·W, C channels, P patch size.

    image (B, in_chans, H·P, W·P) → patches (B, N, C), class token in front, + positions
    → blocks:  x ← x + proj(attn(LN(x)));  x ← x + MLP(LN(x))  → LN → class token → head

Deviations from the paper: any image size from P pixels. Positions learned at the base grid are interpolated (bicubic)
to the live one. Of an image that P does not divide the last rows and columns are left out, as the official code does.

State-dict keys are those of the official and timm code but for one: ``blocks.N.attn.proj`` is ``blocks.N.proj`` here,
because the projection of its output belongs to the block and not to the attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sema.attention.base import Attention
from sema.attention.sima import SimaAttention
from sema.attention.softmax import SoftmaxAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image, size_pair
from sema.layers.learned_positions import LearnedPositions
from sema.layers.mlp import Mlp
from sema.macs import Grid, Macs, conv_macs, linear_macs

_LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) → (B, ⌊H/P⌋, ⌊W/P⌋, C): one linear map of each P×P patch; what is left over is left out."""

    def __init__(self, in_chans: int, dim: int, *, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)  # type: ignore[no-any-return]

    def macs(self, resolution: tuple[int, int]) -> tuple[Macs, Grid]:
        """Return the MACs on an image of ``resolution`` pixels, and the token grid that it gives."""
        grid = (resolution[0] // self.patch_size, resolution[1] // self.patch_size)
        return conv_macs(grid, self.proj.in_channels, self.proj.out_channels, self.patch_size), grid


class Block(nn.Module):
    """Pre-norm transformer block on tokens (B, 1, N, C): attention and MLP, each with a residual."""

    def __init__(self, dim: int, attention: Attention, *, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.attn = attention
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.proj(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def macs(self, tokens: int) -> Macs:
        """Return the MACs on ``tokens`` tokens, the class token included."""
        dim = self.proj.in_features
        return self.attn.macs((1, tokens)).plus(linear_macs(tokens, dim, dim)).plus(self.mlp.macs(tokens))


class VisionTransformer(nn.Module):
    """ViT with a class token and learned positions: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that a quarter of it is a stage.
        num_heads: heads of the attention.
        patch_size: side P of a patch in pixels.
        mlp_ratio: hidden channels of the MLP over C.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        img_size: side in pixels, or (H, W), for which positions are stored; any other size interpolates them.

        attention: ``softmax`` or ``sima``, over all tokens with the class token among them.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, ``img_size`` not one of ``patch_size``, or ``attention`` unknown.
    """

    checkpoint_layout = CheckpointLayout(renames=((r"^(blocks\.\d+)\.attn\.proj\.", r"\1.proj."),))

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        attention: str = "softmax",
    ) -> None:
        super().__init__()
        if attention not in _ATTENTIONS:
            raise ValueError(f"attention must be one of {', '.join(_ATTENTIONS)}; got {attention!r}")
        if depth < 4 or depth % 4:
            raise ValueError(f"depth must be a positive multiple of 4; got {depth}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        height, width = (side // patch_size for side in size_pair(img_size, multiple_of=patch_size))
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size=patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + height * width, dim))
        self._positions = LearnedPositions((height, width))
        build = _ATTENTIONS[attention]
        self.blocks = nn.ModuleList(
            Block(dim, build(dim, num_heads), mlp_ratio=mlp_ratio, drop_path_rate=rate)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=_LAYER_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)
        self.apply(_init_weights)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self._embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0, 0]))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return four maps (B, H, W, C), the patch tokens after each quarter of the depth; all have one size."""
        x, grid = self._embed(x)
        maps = []
        for index, block in enumerate(self.blocks, start=1):
            x = block(x)
            if index % (len(self.blocks) // 4) == 0:
                maps.append(torch.unflatten(x[:, 0, 1:], 1, grid))
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = self.patch_embed.macs(resolution)
        for block in self.blocks:
            assert isinstance(block, Block)
            total = total.plus(block.macs(grid[0] * grid[1] + 1))
        return total.plus(linear_macs(1, self.head.in_features, self.head.out_features))

    def fit_stored(self, name: str, stored: Tensor) -> Tensor:
        """Accept positions of another grid, see ``sema.checkpoint_layout``."""
        if name != "pos_embed":
            raise ValueError(f"{tuple(stored.shape)} in the checkpoint is not what {name} holds")
        return self._positions.fit_stored(stored, self.pos_embed)

    def _embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Return the tokens with their positions (B, 1, 1 + N, C), and the grid of the patches."""
        check_image(x, in_chans=self.in_chans, min_resolution=self.patch_embed.patch_size)
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self._positions(self.pos_embed, grid, training=self.training)
        return x.unsqueeze(1), grid


_ATTENTIONS: dict[str, type[SoftmaxAttention] | type[SimaAttention]] = {
    "softmax": SoftmaxAttention,
    "sima": SimaAttention,
}


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def deit_tiny(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """DeiT-Ti: ViT with softmax attention over 16×16 patches; 5.7 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        dim=192,
        depth=12,
        num_heads=3,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )


def deit_small(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """DeiT-S: ViT with softmax attention over 16×16 patches; 22.1 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        dim=384,
        depth=12,
        num_heads=6,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )


def deit_base(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """DeiT-B: ViT with softmax attention over 16×16 patches; 86.6 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        dim=768,
        depth=12,
        num_heads=12,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )


def sima_deit_tiny(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """SimA-DeiT-Ti: DeiT with SimA in place of softmax attention; 5.7 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        attention="sima",
        dim=192,
        depth=12,
        num_heads=3,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )


def sima_deit_small(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """SimA-DeiT-S: DeiT with SimA in place of softmax attention; 22.1 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        attention="sima",
        dim=384,
        depth=12,
        num_heads=6,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )


def sima_deit_base(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.1, img_size: int | tuple[int, int] = 224
) -> VisionTransformer:
    """SimA-DeiT-B: DeiT with SimA in place of softmax attention; 86.6 M parameters.

    The arguments are those of ``VisionTransformer``.
    """
    return VisionTransformer(
        attention="sima",
        dim=768,
        depth=12,
        num_heads=12,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
    )
