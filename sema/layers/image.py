"""Check image sizes: that of a model's input, and the one it is built for."""

from __future__ import annotations

from torch import Tensor


def check_image(x: Tensor, *, in_chans: int, min_resolution: int = 1) -> None:
    """Raise ValueError unless ``x`` is an image batch (B, in_chans, H, W), H and W at least ``min_resolution``."""
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ValueError(f"expected an image batch (B, {in_chans}, H, W); got shape {tuple(x.shape)}")
    if x.shape[2] < min_resolution or x.shape[3] < min_resolution:
        raise ValueError(f"height and width must be at least {min_resolution} pixels; got {x.shape[2]}×{x.shape[3]}")


def size_pair(img_size: int | tuple[int, int], *, multiple_of: int = 1) -> tuple[int, int]:
    """Return ``img_size`` as (H, W); ValueError unless both sides are positive multiples of ``multiple_of``."""
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1 or height % multiple_of or width % multiple_of:
        raise ValueError(f"img_size must be a positive multiple of {multiple_of}; got {img_size}")
    return height, width
