"""Compute what one token attends to: its coefficients in each attention, and its effective receptive field.

The effective receptive field is the absolute gradient of the sum of the token's output channels with respect to each
input pixel, summed over colours and averaged over images (Luo et al., arXiv 1701.04128).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.coefficients import attention_inputs

#: Largest relative difference between the aspect ratios of a grid and its image.
_SAME_SHAPE = 0.1


@dataclass(frozen=True)
class AttentionMap:
    """One row of coefficients, mean over heads, as a map over the token grid."""

    layer: int  # index of the attention in the model
    weights: NDArray[np.float32]  # (H, W), without class tokens
    token: tuple[int, int]  # row and column of the query


def attention_maps(model: nn.Module, image: Tensor, where: tuple[float, float]) -> list[AttentionMap]:
    """Compute a map for each attention with coefficients of ``model``, in eval mode.

    ``image`` is (1, 3, H, W), normalised; ``where`` is the token, as shares of the image's height and width.
    """
    maps = []
    for layer, attention, x in attention_inputs(model, image):
        extra, height, width = _grid(x.shape[1], x.shape[2], image.shape[2] / image.shape[3])
        row, column = _token(where, height, width)
        query = torch.tensor([extra + row * width + column], device=x.device)
        with torch.inference_mode():
            weights = attention.coefficients(x, query)[0, :, 0].mean(dim=0)[extra:]
        if not torch.isfinite(weights).all():
            raise ProbeError(f"the coefficients of attention {layer + 1} are not finite; check the weights")
        maps.append(AttentionMap(layer, weights.reshape(height, width).float().cpu().numpy(), (row, column)))
    return maps


def _token(where: tuple[float, float], height: int, width: int) -> tuple[int, int]:
    """Find the row and column of a token from its shares of height and width."""
    return min(int(where[0] * height), height - 1), min(int(where[1] * width), width - 1)


def _grid(height: int, width: int, shape: float) -> tuple[int, int, int]:
    """Find the number of extra tokens at the start, and the (H, W) grid of the others.

    A sequence, with a height of 1, may start with class tokens. ProbeError: no grid of the image's ``shape``, height
    over width, has as many tokens.
    """
    if height > 1:
        return 0, height, width
    for extra in (0, 1, 2):
        rows = round(math.sqrt(max(1, width - extra) * shape))
        if rows and (width - extra) % rows == 0 and abs(rows**2 / (width - extra) / shape - 1) < _SAME_SHAPE:
            return extra, rows, (width - extra) // rows
    raise ProbeError(f"its sequence of {width} tokens is not a grid of the image's shape, so there is no map to draw")


def receptive_field(model: nn.Module, images: Sequence[Tensor], where: tuple[float, float]) -> NDArray[np.float32]:
    """Compute the field (H, W) of a token of the last feature map, its largest value 1; see ``attention_maps``."""
    features = getattr(model, "forward_features", None)
    if features is None:
        raise ProbeError("this model gives no feature maps, so the receptive field of a token is unknown")
    total = torch.zeros(images[0].shape[2:])
    for image in images:
        pixels = image.clone().requires_grad_()
        with torch.enable_grad():
            maps = features(pixels)
            last = cast(Tensor, maps[-1] if isinstance(maps, list | tuple) else maps)
            if last.ndim != 4:
                raise ProbeError(f"this model's features are {tuple(last.shape)}; expected a map (B, H, W, C)")
            if not torch.isfinite(last).all():
                raise ProbeError("this model's features are not finite; check the weights")
            row, column = _token(where, last.shape[1], last.shape[2])
            last[0, row, column].sum().backward()
        assert pixels.grad is not None
        total += pixels.grad[0].abs().sum(dim=0)
    largest = float(total.max())
    field: NDArray[np.float32] = (total / largest if largest > 0 and math.isfinite(largest) else total).numpy()
    return field
