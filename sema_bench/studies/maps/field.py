"""Compute the effective receptive field of a token: how much each pixel changes the last feature map there.

For images x and the features f (C) of one token of the last map, the field is the mean over images of
Σ_colours |∂ Σ_c ReLU(f_c) / ∂x|: the gradient at the input of Luo et al. (arXiv 1701.04128), of the rectified features,
as RepLKNet (arXiv 2203.06717) and VMamba (arXiv 2401.10166) take it. Without the rectifier, the sum of a map behind a
layer norm would be a constant. They rectify the gradient, too; here its absolute value counts, as its sign says nothing
about reach.

The area at 50 or 90 % is the smallest share of the pixels that holds that much of the field's sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sema_bench.errors import ProbeError
from sema_bench.studies.maps.last_map import Token, grid_position, last_map


@dataclass(frozen=True)
class FieldArea:
    """Size of one network's receptive field; a row of erf.csv."""

    model: str
    weights: str  # file of a checkpoint; empty: random, drawn from ``seed``
    images: str  # noise, or the name of the data they are drawn from
    height_px: int
    width_px: int
    token_y_share: float
    token_x_share: float
    seed: int  # of the images, and of random weights
    samples: int  # number of images
    area_50_share: float
    area_90_share: float
    area_50_px: int
    area_90_px: int


def receptive_field(model: nn.Module, images: Iterable[Tensor], token: Token) -> NDArray[np.float64]:
    """Compute the field (H, W) of a token of the last map, its sum 1.

    ``images`` are (1, 3, H, W), normalised.
    """
    total: Tensor | None = None
    for image in images:
        pixels = image.clone().requires_grad_()
        with torch.enable_grad():
            last = last_map(model, pixels)
            if last.ndim != 4:
                raise ProbeError(f"this model's features are {tuple(last.shape)}; expected a map (B, H, W, C)")
            if not torch.isfinite(last).all():
                raise ProbeError("this model's features are not finite; check the weights")
            row, column = grid_position(token, last.shape[1], last.shape[2])
            (gradient,) = torch.autograd.grad(last[0, row, column].relu().sum(), pixels)
        slopes = gradient[0].abs().sum(dim=0).double()
        total = slopes if total is None else total + slopes
    assert total is not None
    if not 0 < float(total.sum()) < math.inf:
        raise ProbeError("no pixel changes this token, or the gradient is not finite, so it has no receptive field")
    field: NDArray[np.float64] = (total / total.sum()).cpu().numpy()
    return field


def area_pixels(field: NDArray[np.float64], share: float) -> int:
    """Count the fewest pixels that hold ``share`` of the sum of ``field``."""
    held = np.cumsum(np.sort(field, axis=None)[::-1])
    return int(np.searchsorted(held, share * held[-1] * (1 - 1e-12))) + 1
