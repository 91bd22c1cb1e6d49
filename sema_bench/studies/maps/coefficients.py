"""Compute what one token attends to: its coefficients in each attention, and its effective receptive field.

The effective receptive field is the absolute gradient of the sum of the token's output channels with respect to each
input pixel, summed over colours and averaged over images (Luo et al., arXiv 1701.04128).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.errors import ProbeError
from sema_bench.studies.dispersion.coefficients import attentions_of

#: Largest relative difference between the aspect ratios of a grid and its image.
_SAME_SHAPE = 0.1


@dataclass(frozen=True)
class AttentionMap:
    """One row of coefficients, mean over heads, as a map over the token grid.

    Attributes:
        layer: index of the attention in the model.
        weights: (H, W), without class tokens.
        token: row and column of the query.
    """

    layer: int
    weights: NDArray[np.float32]
    token: tuple[int, int]

    @property
    def largest_over_even(self) -> float:
        """The largest coefficient in units of an even spread, 1 / N."""
        return float(self.weights.max() / self.weights.sum() * self.weights.size)


def attention_maps(model: nn.Module, image: Tensor, where: tuple[float, float]) -> list[AttentionMap]:
    """Compute a map for each attention of ``model`` with coefficients.

    Args:
        model: in eval mode.
        image: (1, 3, H, W), normalised.
        where: the token, as shares of the image's height and width.

    Raises:
        ProbeError: no attention has coefficients.
    """
    maps: list[AttentionMap] = []

    def look(layer: int, attention: Attention, x: Tensor) -> None:
        extra, height, width = _grid(x.shape[1], x.shape[2], image.shape[2] / image.shape[3])
        token = (min(int(where[0] * height), height - 1), min(int(where[1] * width), width - 1))
        row = torch.tensor([extra + token[0] * width + token[1]], device=x.device)
        weights = attention.coefficients(x, row)[0, :, 0].mean(dim=0)[extra:]
        if not torch.isfinite(weights).all():
            raise ProbeError(f"the coefficients of attention {layer + 1} are not finite; its weights are no good")
        maps.append(AttentionMap(layer, weights.reshape(height, width).float().cpu().numpy(), token))

    def hook(layer: int) -> Any:
        return lambda module, inputs: look(layer, module, inputs[0])

    handles = [module.register_forward_pre_hook(hook(i)) for i, module in enumerate(attentions_of(model))]
    try:
        with torch.inference_mode():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return maps


def _grid(height: int, width: int, shape: float) -> tuple[int, int, int]:
    """Return the number of extra tokens at the start, and the (H, W) grid of the others.

    A sequence, with a height of 1, may start with class tokens.

    Raises:
        ProbeError: no grid of the image's ``shape``, height over width, has as many tokens.
    """
    if height > 1:
        return 0, height, width
    for extra in (0, 1, 2):
        rows = round(math.sqrt(max(1, width - extra) * shape))
        if rows and (width - extra) % rows == 0 and abs(rows**2 / (width - extra) / shape - 1) < _SAME_SHAPE:
            return extra, rows, (width - extra) // rows
    raise ProbeError(f"its sequence of {width} tokens is no grid of the image's shape, so there is no map to draw")


def receptive_field(model: nn.Module, images: Sequence[Tensor], where: tuple[float, float]) -> NDArray[np.float32]:
    """Compute the effective receptive field of a token of the last feature map: (H, W), its largest value 1.

    Args:
        model: with ``forward_features``, in eval mode.
        images: (1, 3, H, W) each, normalised.
        where: the token, as shares of height and width.

    Raises:
        ProbeError: the model gives no feature maps.
    """
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
                raise ProbeError("this model's features are not finite; its weights are no good")
            height, width = last.shape[1], last.shape[2]
            row, column = (min(int(w * n), n - 1) for w, n in zip(where, (height, width), strict=True))
            last[0, row, column].sum().backward()
        assert pixels.grad is not None
        total += pixels.grad[0].abs().sum(dim=0)
    largest = float(total.max())
    field: NDArray[np.float32] = (total / largest if largest > 0 and math.isfinite(largest) else total).numpy()
    return field
