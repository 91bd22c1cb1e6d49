"""Prepare photographs for tests as the field does: resize the shorter side, crop the centre, normalise.

With a ``crop_pct`` of 0.875 an image is resized to 256 for a model at 224. Sides are rounded as in torchvision.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from sema_bench.data.base import Pixels
from sema_bench.spec.data_source import CROP_PCT

#: Of ImageNet, in units of a pixel's full scale; every image is normalised with these, including scenes.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
#: Largest aspect ratio, relative to the target, of an image that is resized whole.
_LONGEST = 16


def resized_and_cropped(image: Image.Image, size: tuple[int, int], *, crop_pct: float = CROP_PCT) -> Pixels:
    """Resize an RGB image and crop its centre to ``size`` (H, W); ``crop_pct`` of the shorter side remains."""
    height, width = size
    image = _middle(image, width / height)
    covering = (math.floor(height / crop_pct), math.floor(width / crop_pct))
    if image.height * covering[1] <= image.width * covering[0]:  # relative to the target, the image is wide
        scaled = (covering[0], max(covering[1], int(covering[0] * image.width / image.height)))
    else:
        scaled = (max(covering[0], int(covering[1] * image.height / image.width)), covering[1])
    if scaled != (image.height, image.width):
        image = image.resize((scaled[1], scaled[0]), Image.Resampling.BICUBIC)
    top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    return np.asarray(image.crop((left, top, left + width, top + height)))


def squashed(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """Resize an RGB image to ``size`` (H, W), whatever its shape."""
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _middle(image: Image.Image, shape: float) -> Image.Image:
    """Cut the ends off a very long ``image``: the crop drops them anyway, and the resized image would be huge."""
    across = max(1, round(min(image.width / shape, image.height) * _LONGEST))
    along = max(1, round(min(image.height * shape, image.width) * _LONGEST))
    left, top = max(0, (image.width - along) // 2), max(0, (image.height - across) // 2)
    if not left and not top:
        return image
    return image.crop((left, top, image.width - left, image.height - top))
