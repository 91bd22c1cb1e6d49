"""Augment whole batches: label smoothing, mixup, CutMix and random erasing.

Sources: mixup, Zhang et al., arXiv 1710.09412; CutMix, Yun et al., arXiv 1905.04899. As in the recipes of this
field, one share holds for a whole batch, and each image is mixed with the one opposite in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sema_bench.errors import UsageError


def soft_targets(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Turn labels into targets (n, classes): 1 − smoothing at the label, and smoothing / classes everywhere."""
    hot = F.one_hot(labels, classes).to(torch.float32)
    return hot * (1 - smoothing) + smoothing / classes


def mixed(
    images: Tensor, targets: Tensor, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix images (n, C, H, W) and soft targets (n, classes) with those opposite in the batch.

    ``mixup`` and ``cutmix`` are the α of the Beta distributions of the share; 0: off. With both, each has equal chance.
    """
    if not (mixup or cutmix) or len(images) < 2:
        return images, targets
    cut = bool(cutmix) and (not mixup or float(torch.rand((), generator=generator)) < 0.5)
    share = _beta(cutmix if cut else mixup, generator)
    if cut:
        top, bottom, left, right = _box(images.shape[-2], images.shape[-1], share, generator)
        images = images.clone()
        images[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
    else:
        images = images * share + images.flip(0) * (1 - share)
    return images, targets * share + targets.flip(0) * (1 - share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(α, α)."""
    x, y = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator).tolist()
    return float(x / (x + y)) if x + y > 0 else 0.5  # both underflow for a tiny α


def _box(height: int, width: int, share: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw (top, bottom, left, right) of a box of 1 − ``share`` of the area, clipped to the image."""
    h, w = int(height * (1 - share) ** 0.5), int(width * (1 - share) ** 0.5)
    y, x = (int(torch.randint(extent, (), generator=generator)) for extent in (height, width))
    top, left = max(0, y - h // 2), max(0, x - w // 2)
    return top, min(height, y - h // 2 + h), left, min(width, x - w // 2 + w)


def eraser(probability: float, device: torch.device) -> Any:
    """Make a function that erases a rectangle of each image with ``probability``; None if that is 0."""
    if not probability:
        return None
    try:
        from timm.data.random_erasing import RandomErasing
    except ImportError:
        raise UsageError("erasing needs timm, which is not installed; pip install 'sema-bench[timm]'") from None
    return RandomErasing(probability, mode="pixel", device=device)
