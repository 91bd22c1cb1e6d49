"""VMamba: a hierarchical backbone whose token mixing is a selective scan along rows and columns.

Paper: VMamba, arXiv 2401.10166; the variants and their names follow the official code, MzeroMiko/VMamba.

Legend: B batch, H W token grid of the stage, C channels, D = C · ssm_ratio channels of the scan.

    image (B, in_chans, H, W) → two 3×3 convolutions, ÷4 → four stages of blocks, a 3×3 convolution of stride 2 to twice
    the channels between them → LN → mean → head

    block:  x ← x + out_proj(SS2D(SiLU(dwc(in_proj LN(x)))));  x ← x + MLP(LN(x))

Maps are (B, H, W, C) from the stem on. Any image size works: a convolution of stride 2 outputs ⌈H/2⌉ × ⌈W/2⌉, and
nothing is tied to a position.

Deviations from the paper: none. State-dict keys are the official ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.vmamba import VmambaAttention
from sema.layers.conv import DepthwiseConv2d, MapConv2d
from sema.layers.counted import Counted, layer_macs
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.mlp import Mlp
from sema.layers.pooling import MeanPooling
from sema.macs import Grid, Macs, linear_macs, total_macs
from sema.models.backbone import Stage, StagedBackbone, init_linear, stages_info


class SS2D(VmambaAttention):
    """The scan with VMamba's layers around it: (B, H, W, C) → (B, H, W, C), scanned in C · ``ssm_ratio`` channels."""

    def __init__(self, dim: int, *, ssm_ratio: int, scan: str) -> None:
        inner = dim * ssm_ratio
        super().__init__(inner, 1, state_dim=1, dt_rank=-(-dim // 16), scan=scan)
        self.in_proj = nn.Linear(dim, inner, bias=False)
        self.conv2d = DepthwiseConv2d(inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(super().forward(F.silu(self.conv2d(self.in_proj(x)))))

    def reference(self, x: Tensor) -> Tensor:
        x = self.conv2d.reference(self.in_proj(x))
        return self.out_proj(super().reference(x * x.sigmoid()))

    def macs(self, grid: Grid) -> Macs:
        around = linear_macs(grid[0] * grid[1], self.in_proj.in_features, 2 * self.dim)
        return total_macs(super().macs(grid), around, layer_macs(self.conv2d, grid)[0])


class Block(Counted):
    """Pre-norm block: SS2D and MLP, each with a residual."""

    def __init__(self, dim: int, op: SS2D, *, drop_path_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = op
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VMamba(StagedBackbone):
    """Four stages of selective scans and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        ssm_ratio: channels of the scan divided by C.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        scan: kernel of the scan, see ``sema.attention.vmamba``.
    """

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        ssm_ratio: int,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        scan: str = "auto",
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        # The Identity layers stand for the official code's layout changes, which these maps do not need.
        self.patch_embed = nn.Sequential(
            MapConv2d(in_chans, dim // 2),
            nn.Identity(),
            nn.LayerNorm(dim // 2),
            nn.Identity(),
            nn.GELU(),
            MapConv2d(dim // 2, dim),
            nn.Identity(),
            nn.LayerNorm(dim),
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.layers = nn.ModuleList()
        self.feature_info = stages_info("layers.{}.blocks", [dim * 2**index for index in range(len(depths))])
        for index, depth in enumerate(depths):
            width = dim * 2**index
            ops = (SS2D(width, ssm_ratio=ssm_ratio, scan=scan) for _ in range(depth))
            blocks = [Block(width, op, drop_path_rate=next(rates)) for op in ops]
            steps = (nn.Identity(), MapConv2d(width, 2 * width), nn.Identity(), nn.LayerNorm(2 * width))
            self.layers.append(Stage(blocks, nn.Sequential(*steps) if index < len(depths) - 1 else None))
        layers = OrderedDict(norm=nn.LayerNorm(width), pooling=MeanPooling(), head=nn.Linear(width, num_classes))
        self.classifier = nn.Sequential(layers)
        self.apply(init_linear)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)
