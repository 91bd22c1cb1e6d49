"""The yardstick: a small fixed network that is timed beside every group, to show changes of the machine's speed.

It shares no code with the models that are compared, so a change that makes all of them slower leaves it alone. If this
network changes, it gets another name: runs with different yardsticks must not look alike.
"""

from __future__ import annotations

from torch import Tensor, nn

_DIM, _BLOCKS, _PATCH = 64, 3, 4


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(_DIM, _DIM, 3, padding=1, groups=_DIM)
        self.norm = nn.LayerNorm(_DIM)
        self.mlp = nn.Sequential(nn.Linear(_DIM, 4 * _DIM), nn.GELU(), nn.Linear(4 * _DIM, _DIM))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(x)
        rows = x.permute(0, 2, 3, 1)
        out: Tensor = rows + self.mlp(self.norm(rows))
        return out.permute(0, 3, 1, 2)


def build() -> nn.Module:
    """Build it, (B, 3, H, W) → (B, 64): products, convolutions and passes over memory, as the models have them."""
    stem = nn.Conv2d(3, _DIM, _PATCH, _PATCH)
    return nn.Sequential(stem, *(_Block() for _ in range(_BLOCKS)), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
