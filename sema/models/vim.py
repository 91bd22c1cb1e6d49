"""Vim: a plain backbone whose token mixing is a bidirectional selective scan in reading order.

Paper: Vision Mamba, arXiv 2401.09417; the official code is hustvl/Vim.

Legend: B batch, H W grid of patches, N = H·W, C channels, D = 2C channels of the scan.

    image (B, in_chans, H·P, W·P) → patches (B, N, C), a class token inserted at position ⌊N/2⌋, + positions
    → blocks:  (u, z) = in_proj RMSNorm(x);  x ← x + out_proj(scan(u) · SiLU(z))  → RMSNorm → class token → head

Deviations from the paper: any image size from P pixels. Positions learned at the base grid are interpolated (bicubic)
to the input's grid, except the class token's. If P does not divide the image, the last rows and columns are dropped, as
in the official code. The residual stream has the model's dtype; the official code keeps it in float32 under mixed
precision.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.attention.vim import VimAttention
from sema.layers.counted import Counted
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.selective_scan import scan_flops
from sema.macs import Macs, linear_macs
from sema.models.backbone import TokenBackbone, init_linear, quarter_of, quarters_info, run_quarters

_RMS_NORM_EPS = 1e-5
#: States per channel.
_STATE_DIM = 16
_INITS = ("official", "intended")
#: timm 0.4.12, which the official code names, divides the deviation of LeCun's initialisation by this.
_LECUN_NORMAL = 0.87962566103423978


class Mixer(VimAttention):
    """The scan with Vim's projections around it: (B, L, C) → (B, L, C), gated and scanned in 2C channels."""

    def __init__(self, dim: int, *, scan: str) -> None:
        super().__init__(2 * dim, 1, state_dim=_STATE_DIM, dt_rank=-(-dim // 16), scan=scan)
        self.in_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(self.mix_sequence(u) * F.silu(z))

    def reference(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        mixed = super().reference(u.unsqueeze(1)).squeeze(1)
        return self.out_proj(mixed * z * z.sigmoid())

    def sequence_macs(self, tokens: int) -> Macs:
        around = linear_macs(tokens, self.in_proj.in_features, 3 * self.dim)
        # The gate is counted once per direction, as the official fused scan applies it.
        gate = scan_flops(tokens, 2 * self.dim, 0, skip=False, gate=True)
        return super().sequence_macs(tokens).plus(around).plus(Macs(scan_flops=gate))


class Block(Counted):
    """Pre-norm block on tokens (B, L, C): the mixer with a residual; there is no MLP."""

    def __init__(self, dim: int, *, scan: str, drop_path_rate: float) -> None:
        super().__init__()
        self.mixer = Mixer(dim, scan=scan)
        self.norm = nn.RMSNorm(dim, eps=_RMS_NORM_EPS)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class Vim(TokenBackbone):
    """Bidirectional selective scans over 16×16 patches and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels C.
        depth: number of blocks; a multiple of 4, so that each quarter is a stage.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        img_size: see ``TokenBackbone``.
        scan: kernel of the scan, see ``sema.attention.vim``.
        init: how the step sizes of the backward scan start. The ``official`` code, behind the published figures, resets
            the biases of all linear maps except the forward scan's, so this bias is 0 and Δ starts near 0.69.
            ``intended`` starts both as Mamba does, with Δ between 0.001 and 0.1.

    Raises:
        ValueError: ``depth`` is not a multiple of 4, ``img_size`` is not a multiple of 16, or ``init`` is unknown.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        scan: str = "auto",
        init: str = "official",
    ) -> None:
        quarter = quarter_of(depth)
        if init not in _INITS:
            raise ValueError(f"init must be one of {', '.join(_INITS)}; got {init!r}")
        super().__init__(dim, num_classes=num_classes, in_chans=in_chans, img_size=img_size, class_in_middle=True)
        self.quarter, self.feature_info = quarter, quarters_info("layers", dim, quarter)
        self.layers = nn.ModuleList(
            Block(dim, scan=scan, drop_path_rate=rate) for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm_f = nn.RMSNorm(dim, eps=_RMS_NORM_EPS)
        self.head = nn.Linear(dim, num_classes)

        self.patch_embed.apply(_init_conv)
        init_linear(self.head)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        for block in self.layers:
            assert isinstance(block, Block)
            if init == "official":
                nn.init.zeros_(block.mixer.dt_proj_b.bias)
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():  # as in Mamba: the sum of all blocks starts with the variance of one
                block.mixer.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, middle, _ = self.embed(x)
        for block in self.layers:
            x = block(x)
        return self.head(self.norm_f(x[:, middle]))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute four maps (B, H, W, C) of one size: the patch tokens after each quarter of the depth."""
        x, middle, grid = self.embed(x)
        return [
            torch.unflatten(torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), dim=1), 1, grid)
            for tokens in run_quarters(self.layers, x, self.quarter)
        ]


def _init_conv(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        fan_in = module.weight[0].numel()
        nn.init.trunc_normal_(module.weight, std=fan_in**-0.5 / _LECUN_NORMAL)
        nn.init.zeros_(module.bias)
