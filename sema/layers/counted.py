"""MACs of a network: the sum over its layers, each on the grid that reaches it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from sema.macs import Grid, Macs, conv_macs, linear_macs


class Counted(nn.Module):
    """A module whose MACs are the sum over its children, which run in sequence."""

    def macs(self, grid: Grid) -> tuple[Macs, Grid]:
        """Count the MACs on a map of ``grid`` tokens; also return the grid of the result."""
        return chain_macs(self.children(), grid)


def chain_macs(layers: Iterable[nn.Module], grid: Grid) -> tuple[Macs, Grid]:
    """Count the MACs of ``layers``, run in sequence on a map of ``grid``; also return the last grid.

    A layer with a method ``macs(grid)`` counts itself. It returns its MACs, and the new grid if that changes.
    """
    total = Macs()
    for layer in layers:
        macs, grid = layer_macs(layer, grid)
        total = total.plus(macs)
    return total, grid


def layer_macs(layer: nn.Module, grid: Grid) -> tuple[Macs, Grid]:
    """Count the MACs of one layer on a map of ``grid``; also return the grid of the result.

    Raises:
        TypeError: a layer with weights that is neither linear nor a convolution, and has no method ``macs``.
    """
    if hasattr(layer, "macs"):
        counted = layer.macs(grid)  # type: ignore[operator]
        return (counted, grid) if isinstance(counted, Macs) else counted
    if isinstance(layer, nn.Linear):
        return linear_macs(grid[0] * grid[1], layer.in_features, layer.out_features), grid
    if isinstance(layer, nn.Conv2d):
        return conv2d_macs(layer, grid)
    if any(weight.ndim > 1 for weight in layer.parameters(recurse=False)):
        raise TypeError(f"{type(layer).__name__} has weights and no formula of its MACs; give it a method macs(grid)")
    return chain_macs(layer.children(), grid)


def conv2d_macs(conv: nn.Conv2d, grid: Grid) -> tuple[Macs, Grid]:
    """Count the MACs of a square convolution on a map of ``grid``; also return the grid of the result."""
    (kernel, across), (stride, _), padding = conv.kernel_size, conv.stride, int(conv.padding[0])
    if across != kernel or conv.dilation != (1, 1):
        raise TypeError(f"no formula for the MACs of {conv}")
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in grid)
    macs = conv_macs((height, width), conv.in_channels, conv.out_channels, kernel, groups=conv.groups)
    return macs, (height, width)
