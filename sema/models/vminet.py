"""VMINet: convolutions around one weighted sum of all tokens (VMI-SA), in four stages.

Paper: A Separable Self-attention Inspired by the State Space Model for Computer Vision, arXiv 2501.02040; the network
follows the official code, yws-wxs/VMINet, which has two versions: 1, and 2.0, used by the published checkpoints.

Legend: B batch, H W grid of the stage, C channels, e expansion.

    image (B, in_chans, H, W) → 3×3 convolution of stride 2, BN, ReLU6 → four stages → BN → mean → head
    stage:  3×3 convolution of stride 2, BN → blocks
    block:  x ← x + BN(VMI-SA(BN(dw7×7(x)))) in version 1
            x ← x + VMI-SA(BN(dw7×7(x))), the token sum masked, in version 2

Maps are (B, H, W, C) from the stem on.

Deviations from the paper: any image size. The weights of the token sum are stored for one grid per stage; at any other
grid they are interpolated and the mask is carried over, see ``sema.attention.vmi``. Version 1 has no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from sema.attention.vmi import VmiAttention
from sema.checkpoint_layout import CheckpointLayout
from sema.layers.conv import DepthwiseConv2d, MapBatchNorm2d, MapConv2d, conv_bn
from sema.layers.counted import Counted
from sema.layers.drop_path import DropPath, drop_path_rates
from sema.layers.image import size_pair
from sema.layers.pooling import MeanPooling
from sema.macs import Grid
from sema.models.backbone import Backbone, init_linear, stages_info

_STEM_CHANNELS = 32


class Block(Counted):
    """Depthwise convolution and VMI-SA, each with a batch norm, inside one residual.

    In version 2 the token sum is masked, and VMI-SA has no norm.
    """

    def __init__(self, dim: int, *, expansion: int, token_grid: Grid, version: int, drop_path_rate: float) -> None:
        super().__init__()
        self.dwconv = conv_bn(DepthwiseConv2d(dim, kernel_size=7))
        self.attn = VmiAttention(dim, 1, token_grid=token_grid, expansion=expansion, masked=version == 2)
        self.norm = MapBatchNorm2d(dim) if version == 1 else nn.Identity()
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.norm(self.attn(self.dwconv(x))))


class VMINet(Backbone):
    """Four stages of VMI-SA blocks and a classifier: (B, in_chans, H, W) → (B, num_classes).

    Args:
        dim: channels of the first stage; each stage doubles them.
        depths: blocks of each stage.
        expansion: factor e by which a block widens its channels.
        version: of the official code, 1 or 2.
        num_classes, in_chans, drop_path_rate: see ``Backbone``.
        img_size: side in pixels, or (H, W), for which the weights of the token sums are stored; they are interpolated
            to any other size.

    Raises:
        ValueError: ``img_size`` is not positive, or ``version`` is unknown.
    """

    #: The official code holds the 1×1 convolutions and the token sum directly in the block.
    checkpoint_layout = CheckpointLayout(
        renames=(
            (r"^(stages\.\d+\.\d+)\.conv\.(conv|bn)\.", r"\1.dwconv.\2."),  # version 2
            (r"^(stages\.\d+\.\d+)\.(f1|f2|g)\.conv\.", r"\1.attn.\2."),
            (r"^(stages\.\d+\.\d+)\.(sum\.weight|stack)$", r"\1.attn.\2"),
            (r"^(stages\.\d+\.\d+)\.g\.bn\.", r"\1.norm."),
        )
    )

    def __init__(
        self,
        dim: int,
        depths: Sequence[int],
        expansion: int,
        version: int = 1,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
    ) -> None:
        super().__init__(num_classes=num_classes, in_chans=in_chans)
        if version not in (1, 2):
            raise ValueError(f"version must be 1 or 2; got {version}")
        self.stem = nn.Sequential(conv_bn(MapConv2d(in_chans, _STEM_CHANNELS)), nn.ReLU6())
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList()
        self.feature_info = stages_info("stages.{}", [dim * 2**index for index in range(len(depths))])
        height, width = (-(-side // 2) for side in size_pair(img_size))
        channels = _STEM_CHANNELS
        for index, depth in enumerate(depths):
            before, channels = channels, dim * 2**index
            height, width = -(-height // 2), -(-width // 2)
            blocks = [
                Block(channels, expansion=expansion, token_grid=(height, width), version=version, drop_path_rate=rate)
                for rate in itertools.islice(rates, depth)
            ]
            self.stages.append(nn.Sequential(conv_bn(MapConv2d(before, channels)), *blocks))
        self.norm = MapBatchNorm2d(channels)
        self.pooling = MeanPooling()
        self.head = nn.Linear(channels, num_classes)
        init_linear(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.to_map(x))
        for stage in self.stages:
            x = stage(x)
        return self.head(self.pooling(self.norm(x)))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Compute the map of each stage: four maps (B, H, W, C)."""
        x = self.stem(self.to_map(x))
        return [x := stage(x) for stage in self.stages]
