"""Count multiply-accumulates from formulas; every counter must agree with these counts.

1 MAC = 2 FLOPs. Matrix products, convolutions and attention products count; normalisation,
activations and other elementwise work do not, as in every table of this field. A selective scan is elementwise too,
but it is a large part of a state-space model, so its FLOPs are counted separately.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

#: (H, W) in tokens.
Grid = tuple[int, int]


class Macs(NamedTuple):
    """MACs of one image by kind of work, and FLOPs of scans; integers, so equality is exact."""

    attention: int = 0
    projection: int = 0
    convolution: int = 0
    scan_flops: int = 0

    @property
    def total(self) -> int:
        """MACs without scans."""
        return self.attention + self.projection + self.convolution

    def plus(self, other: Macs) -> Macs:
        """Add ``other``, part by part."""
        return Macs(*(a + b for a, b in zip(self, other, strict=True)))


def total_macs(*parts: Macs) -> Macs:
    """Add up ``parts``, part by part."""
    return functools.reduce(Macs.plus, parts, Macs())


def linear_macs(tokens: int, in_features: int, out_features: int) -> Macs:
    """Count the MACs of a linear layer on ``tokens`` tokens (bias not counted)."""
    return Macs(projection=tokens * in_features * out_features)


def conv_macs(out_grid: Grid, in_channels: int, out_channels: int, kernel_size: int, *, groups: int = 1) -> Macs:
    """Count the MACs of a square convolution whose output is a map of ``out_grid`` (bias not counted)."""
    return Macs(convolution=out_grid[0] * out_grid[1] * out_channels * (in_channels // groups) * kernel_size**2)
