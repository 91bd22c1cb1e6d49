"""The one check of what a model is given."""

from __future__ import annotations

from torch import Tensor


def check_image(x: Tensor, *, in_chans: int, min_resolution: int = 1) -> None:
    """Refuse anything but an image batch (B, ``in_chans``, H, W) with H and W of at least ``min_resolution`` pixels.

    Raises:
        ValueError: what was got and what was expected.
    """
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"expected an image batch (B, {in_chans}, H, W); got shape {tuple(x.shape)}")
    if min(x.shape[2], x.shape[3]) < min_resolution:
        raise ValueError(f"height and width must be at least {min_resolution} pixels; got {x.shape[2]}×{x.shape[3]}")
