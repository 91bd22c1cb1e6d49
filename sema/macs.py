"""Multiply-accumulates from formulas: the count that every counter must agree with.

1 MAC = 2 FLOPs. Matrix products, convolutions and attention products count; normalisation,
activations and other elementwise work do not, as in every table of this field. A selective scan is elementwise work
too, yet no small part of a state-space model's; its FLOPs are kept beside the MACs and never mixed with them.
"""

from __future__ import annotations

from typing import NamedTuple

#: (H, W) in tokens.
Grid = tuple[int, int]


class Macs(NamedTuple):
    """MACs of one image, split by where they are spent, and FLOPs of scans; integers, so that equality is exact."""

    attention: int = 0
    projection: int = 0
    convolution: int = 0
    scan_flops: int = 0

    @property
    def total(self) -> int:
        """MACs without scans."""
        return self.attention + self.projection + self.convolution

    def plus(self, other: Macs) -> Macs:
        """Return the sum, part by part."""
        return Macs(*(a + b for a, b in zip(self, other, strict=True)))


def total_macs(*parts: Macs) -> Macs:
    """Return the sum of ``parts``, part by part."""
    result = Macs()
    for part in parts:
        result = result.plus(part)
    return result


def linear_macs(tokens: int, in_features: int, out_features: int) -> Macs:
    """Return the MACs of a linear layer on ``tokens`` tokens (bias not counted)."""
    return Macs(projection=tokens * in_features * out_features)


def conv_macs(out_grid: Grid, in_channels: int, out_channels: int, kernel_size: int, *, groups: int = 1) -> Macs:
    """Return the MACs of a square convolution that gives a map of ``out_grid`` (bias not counted)."""
    return Macs(convolution=out_grid[0] * out_grid[1] * out_channels * (in_channels // groups) * kernel_size**2)
