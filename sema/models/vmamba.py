"""VMamba: a hierarchical backbone whose token mixing is a selective scan along rows and columns.

Paper: VMamba, arXiv 2401.10166; the variants and their names follow the official code, MzeroMiko/VMamba.

Legend: B batch, H W token grid of the stage at hand, C channels, D = C · ssm_ratio channels of the scan.

    image (B, in_chans, H, W) → two 3×3 convolutions, ÷4 → four stages of blocks, a 3×3 convolution of stride 2 to twice
    the channels between them → LN → mean → head

    block:  x ← x + out_proj(SS2D(SiLU(dwc(in_proj LN(x)))));  x ← x + MLP(LN(x))

Maps are (B, H, W, C) from the stem on. Any image size runs: a convolution of stride 2 gives ⌈H/2⌉ × ⌈W/2⌉, and nothing
is tied to a position.

Deviations from the paper: none. State-dict keys are the official ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.base import token_mean
from sema.attention.vmamba import VmambaAttention
from sema.layers.conv import DepthwiseConv2d, StridedConv2d
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import check_image
from sema.layers.mlp import Mlp
from sema.macs import Grid, Macs, linear_macs


class SS2D(VmambaAttention):
    """The scan with what VMamba puts around it: (B, H, W, C) → (B, H, W, C), scanned in C · ``ssm_ratio`` channels."""

    def __init__(self, dim: int, *, ssm_ratio: int, state_dim: int, scan: str) -> None:
        inner = dim * ssm_ratio
        super().__init__(inner, 1, state_dim=state_dim, dt_rank=-(-dim // 16), scan=scan)
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = DepthwiseConv2d(inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(super().forward(F.silu(self.conv2d(self.in_proj(x)))))  # type: ignore[no-any-return]

    def reference(self, x: Tensor) -> Tensor:
        x = self.conv2d.reference(self.in_proj(x))
        return self.out_proj(super().reference(x * x.sigmoid()))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> Macs:
        around = linear_macs(grid[0] * grid[1], self.in_proj.in_features, 2 * self.dim)
        return super().macs(grid).plus(around).plus(self.conv2d.macs(grid))


class Block(nn.Module):
    """Pre-norm block: SS2D and MLP, each with a residual."""

    def __init__(self, dim: int, op: SS2D, *, mlp_ratio: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = op
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> Macs:
        """Return the MACs on a map of ``grid`` tokens."""
        return self.op.macs(grid).plus(self.mlp.macs(grid[0] * grid[1]))


class Stage(nn.Module):
    """Blocks at one size, then the step to the next size where there is one."""

    def __init__(self, blocks: Sequence[Block], dim: int, *, downsample: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        # The gaps in the numbers are the official code's changes of layout, which these maps do not need.
        steps: list[nn.Module] = [nn.Identity(), StridedConv2d(dim, 2 * dim), nn.Identity(), nn.LayerNorm(2 * dim)]
        self.downsample = nn.Sequential(*(steps if downsample else []))

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.blocks(x))  # type: ignore[no-any-return]

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Return the MACs on a map of ``grid`` tokens, and the size of the map that it gives."""
        total = Macs()
        for block in self.blocks:
            assert isinstance(block, Block)
            total = total.plus(block.macs(grid))
        for step in self.downsample:
            if isinstance(step, StridedConv2d):
                macs, grid = step.macs(grid)
                total = total.plus(macs)
        return total, grid


class VMamba(nn.Module):
    """Four stages of selective scans and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        ssm_ratio: channels of the scan over C.
        state_dim: states of a channel.
        mlp_ratio: hidden channels of the MLP over C.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        scan: what computes the scan, see ``sema.attention.vmamba``.
    """

    def __init__(
        self,
        *,
        dim: int,
        depths: Sequence[int],
        ssm_ratio: int,
        state_dim: int = 1,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        scan: str = "torch",
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.patch_embed = nn.Sequential(
            StridedConv2d(in_chans, dim // 2),
            nn.Identity(),
            nn.LayerNorm(dim // 2),
            nn.Identity(),
            nn.GELU(),
            StridedConv2d(dim // 2, dim),
            nn.Identity(),
            nn.LayerNorm(dim),
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        dims = [dim * 2**index for index in range(len(depths))]
        self.layers = nn.ModuleList(
            Stage(
                [
                    Block(
                        width,
                        SS2D(width, ssm_ratio=ssm_ratio, state_dim=state_dim, scan=scan),
                        mlp_ratio=mlp_ratio,
                        drop_path_rate=next(rates),
                    )
                    for _ in range(depth)
                ],
                width,
                downsample=width != dims[-1],
            )
            for width, depth in zip(dims, depths, strict=True)
        )
        self.classifier = nn.ModuleDict({"norm": nn.LayerNorm(dims[-1]), "head": nn.Linear(dims[-1], num_classes)})
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        x = self._embed(x)
        for stage in self.layers:
            x = stage(x)
        x = token_mean(self.classifier["norm"](x)).flatten(1)
        return self.classifier["head"](x)  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the map of each stage before the step to the next size: four maps (B, H, W, C)."""
        x = self._embed(x)
        maps = []
        for stage in self.layers:
            assert isinstance(stage, Stage)
            maps.append(stage.blocks(x))
            x = stage.downsample(maps[-1])
        return maps

    def macs(self, resolution: tuple[int, int]) -> Macs:
        """Return the MACs and the scan FLOPs of ``forward`` on one image of ``resolution`` (H, W) pixels."""
        total, grid = Macs(), resolution
        for part in itertools.chain(self.patch_embed, self.layers):
            if isinstance(part, StridedConv2d | Stage):
                macs, grid = part.macs(grid)
                total = total.plus(macs)
        head = self.classifier["head"]
        assert isinstance(head, nn.Linear)
        return total.plus(linear_macs(1, head.in_features, head.out_features))

    def _embed(self, x: Tensor) -> Tensor:
        check_image(x, in_chans=self.in_chans)
        return self.patch_embed(x.permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def vmamba_tiny_s1l8(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.2, scan: str = "torch"
) -> VMamba:
    """VMamba-T[s1l8]: selective scans along rows and columns, 1× channels in the scan; 30.2 M parameters.

    The arguments are those of ``VMamba``.
    """
    return VMamba(
        dim=96,
        depths=(2, 2, 8, 2),
        ssm_ratio=1,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )


def vmamba_small_s2l15(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.3, scan: str = "torch"
) -> VMamba:
    """VMamba-S[s2l15]: selective scans along rows and columns, 2× channels in the scan; 50.1 M parameters.

    The arguments are those of ``VMamba``.
    """
    return VMamba(
        dim=96,
        depths=(2, 2, 15, 2),
        ssm_ratio=2,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )


def vmamba_base_s2l15(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.6, scan: str = "torch"
) -> VMamba:
    """VMamba-B[s2l15]: selective scans along rows and columns, 2× channels in the scan; 88.6 M parameters.

    The arguments are those of ``VMamba``.
    """
    return VMamba(
        dim=128,
        depths=(2, 2, 15, 2),
        ssm_ratio=2,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )


def vmamba_small_s1l20(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.3, scan: str = "torch"
) -> VMamba:
    """VMamba-S[s1l20]: selective scans along rows and columns, 1× channels in the scan; 49.0 M parameters.

    The arguments are those of ``VMamba``.
    """
    return VMamba(
        dim=96,
        depths=(2, 2, 20, 2),
        ssm_ratio=1,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )


def vmamba_base_s1l20(
    *, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.5, scan: str = "torch"
) -> VMamba:
    """VMamba-B[s1l20]: selective scans along rows and columns, 1× channels in the scan; 86.6 M parameters.

    The arguments are those of ``VMamba``.
    """
    return VMamba(
        dim=128,
        depths=(2, 2, 20, 2),
        ssm_ratio=1,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        scan=scan,
    )
