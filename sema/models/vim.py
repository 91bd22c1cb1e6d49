"""Vim: a plain backbone whose token mixing is a bidirectional selective scan in reading order.

Paper: Vision Mamba, arXiv 2401.09417; the official code is hustvl/Vim.

Legend: B batch, H W grid of patches, N = H·W, C channels, D = 2C channels of the scan.

    image (B, in_chans, H·P, W·P) → patches (B, N, C), a class token put in at position ⌊N/2⌋, + positions
    → blocks:  (u, z) = in_proj RMSNorm(x);  x ← x + out_proj(scan(u) · SiLU(z))  → RMSNorm → class token → head

Deviations from the paper: any image size from P pixels. Positions learned at the base grid are interpolated (bicubic)
to the live one, the class token's own position apart. Of an image that P does not divide the last rows and columns are
left out, as the official code does. The residual stream has the model's dtype; the official code keeps it in float32
under mixed precision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.vim import VimAttention
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image, size_pair
from sema.layers.learned_positions import LearnedPositions
from sema.layers.selective_scan import scan_flops
from sema.macs import Grid, Macs, linear_macs
from sema.models.vit import PatchEmbed

_RMS_NORM_EPS = 1e-5


class Mixer(VimAttention):
    """The scan with what Vim puts around it: (B, L, C) → (B, L, C), gated and scanned in 2C channels."""

    def __init__(self, dim: int, *, state_dim: int, scan: str) -> None:
        super().__init__(2 * dim, 1, state_dim=state_dim, dt_rank=-(-dim // 16), scan=scan)
        self.in_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(self.mix_sequence(u) * F.silu(z))  # type: ignore[no-any-return]

    def reference(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        mixed = super().reference(u.unsqueeze(1)).squeeze(1)
        return self.out_proj(mixed * z * z.sigmoid())  # type: ignore[no-any-return]

    def sequence_macs(self, tokens: int) -> Macs:
        around = linear_macs(tokens, self.in_proj.in_features, 3 * self.dim)
        # The gate is counted once per direction, as the official fused scan applies it.
        gate = scan_flops(tokens, 2 * self.dim, 0, skip=False, gate=True)
        return super().sequence_macs(tokens).plus(around).plus(Macs(scan_flops=gate))


class Block(nn.Module):
    """Pre-norm block on tokens (B, L, C): the mixer with a residual; there is no MLP."""

    def __init__(self, dim: int, *, state_dim: int, scan: str, drop_path_rate: float) -> None:
        super().__init__()
        self.mixer = Mixer(dim, state_dim=state_dim, scan=scan)
        self.norm = nn.RMSNorm(dim, eps=_RMS_NORM_EPS)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))  # type: ignore[no-any-return]


class Vim(nn.Module):
    """Bidirectional selective scans over 16×16 patches and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that a quarter of it is a stage.
        state_dim: states of a channel.
        patch_size: side P of a patch in pixels.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        img_size: side in pixels, or (H, W), for which positions are stored; any other size interpolates them.
        scan: what computes the scan, see ``sema.attention.vim``.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, or ``img_size`` not one of ``patch_size``.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int = 24,
        state_dim: int = 16,
        patch_size: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        scan: str = "torch",
    ) -> None:
        super().__init__()
        if depth < 4 or depth % 4:
            raise ValueError(f"depth must be a positive multiple of 4; got {depth}")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = PatchEmbed(in_chans, dim, patch_size=patch_size)
        height, width = (side // patch_size for side in size_pair(img_size, multiple_of=patch_size))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, height * width + 1, dim))
        self._positions = LearnedPositions((height, width), class_in_middle=True)
        self.layers = nn.ModuleList(
            Block(dim, state_dim=state_dim, scan=scan, drop_path_rate=rate)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm_f = nn.RMSNorm(dim, eps=_RMS_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)

        self.patch_embed.apply(_init_weights)
        self.head.apply(_init_weights)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for block in self.layers:
            assert isinstance(block, Block)
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():  # as in Mamba: the sum of all blocks starts with the variance of one
                block.mixer.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, middle, _ = self._embed(x)
        for block in self.layers:
            x = block(x)
        return self.head(self.norm_f(x[:, middle]))  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return four maps (B, H, W, C), the patch tokens after each quarter of the depth; all have one size."""
        x, middle, grid = self._embed(x)
        maps = []
        for index, block in enumerate(self.layers, start=1):
            x = block(x)
            if index % (len(self.layers) // 4) == 0:
                patches = torch.cat((x[:, :middle], x[:, middle + 1 :]), dim=1)
                maps.append(torch.unflatten(patches, 1, grid))
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs and the scan FLOPs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = self.patch_embed.macs(resolution)
        for block in self.layers:
            assert isinstance(block, Block)
            total = total.plus(block.mixer.sequence_macs(grid[0] * grid[1] + 1))
        return total.plus(linear_macs(1, self.head.in_features, self.head.out_features))

    def fit_stored(self, name: str, stored: Tensor) -> Tensor:
        """Accept positions of another grid, see ``sema.checkpoint_layout``."""
        if name != "pos_embed":
            raise ValueError(f"{tuple(stored.shape)} in the checkpoint is not what {name} holds")
        return self._positions.fit_stored(stored, self.pos_embed)

    def _embed(self, x: Tensor) -> tuple[Tensor, int, Grid]:
        """Return the tokens with their positions (B, N + 1, C), the class token's index, and the patches' grid."""
        check_image(x, in_chans=self.in_chans, min_resolution=self.patch_embed.patch_size)
        x = self.patch_embed(x)
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        middle = x.shape[1] // 2
        x = torch.cat((x[:, :middle], self.cls_token.expand(x.shape[0], -1, -1), x[:, middle:]), dim=1)
        return x + self._positions(self.pos_embed, grid, training=self.training), middle, grid


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d) and module.bias is not None:
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
        nn.init.zeros_(module.bias)


def vim_tiny(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.1,
    img_size: int | tuple[int, int] = 224,
    scan: str = "torch",
) -> Vim:
    """Vim-Ti: bidirectional selective scan over 16×16 patches; 7.1 M parameters.

    The arguments are those of ``Vim``.
    """
    return Vim(
        dim=192,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        scan=scan,
    )


def vim_small(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.1,
    img_size: int | tuple[int, int] = 224,
    scan: str = "torch",
) -> Vim:
    """Vim-S: bidirectional selective scan over 16×16 patches; 25.8 M parameters.

    The arguments are those of ``Vim``.
    """
    return Vim(
        dim=384,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        scan=scan,
    )


def vim_base(
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.1,
    img_size: int | tuple[int, int] = 224,
    scan: str = "torch",
) -> Vim:
    """Vim-B: bidirectional selective scan over 16×16 patches; 97.6 M parameters.

    The arguments are those of ``Vim``.
    """
    return Vim(
        dim=768,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        img_size=img_size,
        scan=scan,
    )
