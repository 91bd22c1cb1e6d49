"""Corrupt test images as ImageNet-C does (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261).

The parameters are those of the authors' code for 224 pixels (github.com/hendrycks/robustness). Lengths in pixels (the
width of a blur, the side of a block) grow with the shorter side of the image, so that a corruption looks the same at
every size; at 64 pixels they come close to the authors' own parameters for that size. Noise, contrast,
brightness and JPEG's quality are the same at every size.

An image is corrupted after it is resized and cropped. Its random draws depend only on the corruption and the image's
index: all models see the same pixels, and a higher severity applies the same draws more strongly.

Deviations from the authors' code: the disk of ``defocus_blur`` has exact edges instead of a blurred outline;
``motion_blur`` is a sum of shifts, as in ImageMagick, which they call; and they saved their images as JPEG (quality 85)
once more, which we do not.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sema_bench.data.base import Pixels
from sema_bench.spec.corruption import split_corruption

#: Shorter side in pixels that the parameters are for.
_SIDE = 224
#: Points along a pixel's side at which a disk is sampled.
_FINE = 8

_Values = NDArray[np.float64]  # (H, W, 3), 0 to 1
_Draw = np.random.Generator


def corrupted(pixels: Pixels, corruption: str, index: int) -> Pixels:
    """Corrupt ``pixels`` (H, W, 3) of image ``index`` by ``corruption``, as in ``fog:3``."""
    name, severity = split_corruption(corruption)
    apply, parameters = _CORRUPTIONS[name]
    draw = np.random.default_rng((zlib.crc32(name.encode()), index))
    values = apply(pixels / 255, parameters[severity - 1], draw)
    return np.asarray(np.clip(values, 0, 1) * 255, dtype=np.uint8)  # rounded down, as the authors do


def _scale(x: _Values) -> float:
    return float(min(x.shape[:2])) / _SIDE


def _gaussian_noise(x: _Values, deviation: float, draw: _Draw) -> _Values:
    return x + deviation * draw.standard_normal(x.shape)


def _shot_noise(x: _Values, photons: float, draw: _Draw) -> _Values:
    return draw.poisson(x * photons) / photons


def _impulse_noise(x: _Values, share: float, draw: _Draw) -> _Values:
    chance = draw.random(x.shape)  # of each value: black below share / 2, white above 1 − share / 2
    return np.where(chance < share / 2, 0.0, np.where(chance > 1 - share / 2, 1.0, x))


def _speckle_noise(x: _Values, deviation: float, draw: _Draw) -> _Values:
    return x + x * deviation * draw.standard_normal(x.shape)


def _defocus_blur(x: _Values, radius: float, draw: _Draw) -> _Values:
    """Convolve with a disk."""
    from scipy.signal import fftconvolve  # half a second

    radius *= _scale(x)
    reach = math.ceil(radius)
    fine = (np.arange((2 * reach + 1) * _FINE) + 0.5) / _FINE - reach - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius**2).reshape(2 * reach + 1, _FINE, 2 * reach + 1, _FINE)
    disk = inside.mean(axis=(1, 3))
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    blurred: _Values = fftconvolve(padded, (disk / disk.sum())[..., None], mode="valid", axes=(0, 1))
    return blurred


def _gaussian_blur(x: _Values, deviation: float, draw: _Draw) -> _Values:
    from scipy.ndimage import gaussian_filter

    deviation *= _scale(x)
    blurred: _Values = gaussian_filter(x, (deviation, deviation, 0), mode="nearest")
    return blurred


def _motion_blur(x: _Values, parameters: tuple[float, float], draw: _Draw) -> _Values:
    """Add up shifts along a line, with the weights of half a normal distribution."""
    radius, deviation = (_scale(x) * each for each in parameters)
    angle = math.radians(draw.uniform(-45, 45))
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    reach, (height, width) = len(steps), x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    down, right = (np.floor(steps * part + 0.5).astype(int) + reach for part in (math.sin(angle), math.cos(angle)))
    shifts = zip(weights / weights.sum(), down, right, strict=True)
    blurred: _Values = sum(
        (weight * padded[top : top + height, left : left + width] for weight, top, left in shifts), np.zeros_like(x)
    )
    return blurred


def _zoom_blur(x: _Values, zooms: tuple[float, float], draw: _Draw) -> _Values:
    """Average over enlarged centres: up to the first of ``zooms``, in steps of the second."""
    image, (height, width) = _image(x), x.shape[:2]
    factors = np.arange(1, *zooms)
    total: _Values = x.copy()
    for factor in factors:
        top, left = height * (1 - 1 / factor) / 2, width * (1 - 1 / factor) / 2
        box = (left, top, width - left, height - top)
        total += _values(image.resize((width, height), Image.Resampling.BILINEAR, box))
    return total / (len(factors) + 1)


def _fog(x: _Values, parameters: tuple[float, float], draw: _Draw) -> _Values:
    amount, decay = parameters
    height, width = x.shape[:2]
    cloud = _plasma(1 << (max(height, width) - 1).bit_length(), decay, draw)[:height, :width, None]
    brightest = float(x.max())
    return (x + amount * cloud) * brightest / (brightest + amount)


def _plasma(side: int, decay: float, draw: _Draw) -> NDArray[np.float64]:
    """Draw a cloud (side, side) from 0 to 1 by diamonds and squares; the sides of the map meet, so it is periodic."""
    cloud = np.zeros((side, side))
    step, wobble = side, 100.0

    def middle(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        return corners / 4 + wobble * draw.uniform(-wobble, wobble, corners.shape)

    while step >= 2:
        half = step // 2
        corner = cloud[::step, ::step]
        sides = corner + np.roll(corner, -1, axis=0)
        centre = cloud[half::step, half::step] = middle(sides + np.roll(sides, -1, axis=1))
        cloud[::step, half::step] = middle(centre + np.roll(centre, 1, axis=0) + corner + np.roll(corner, -1, axis=1))
        cloud[half::step, ::step] = middle(centre + np.roll(centre, 1, axis=1) + corner + np.roll(corner, -1, axis=0))
        step, wobble = half, wobble / decay
    cloud -= cloud.min()
    normal: NDArray[np.float64] = cloud / cloud.max()
    return normal


def _brightness(x: _Values, amount: float, draw: _Draw) -> _Values:
    """Raise the value of HSV, which scales a pixel; black becomes grey."""
    value: _Values = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, x * raised / np.maximum(value, 1 / 255), raised)


def _contrast(x: _Values, share: float, draw: _Draw) -> _Values:
    mean: _Values = x.mean(axis=(0, 1))
    return (x - mean) * share + mean


def _pixelate(x: _Values, share: float, draw: _Draw) -> _Values:
    """Shrink to ``share`` of the sides and enlarge again; blocks of one pixel change nothing at any size."""
    share = 1 / (1 + (1 / share - 1) * _scale(x))
    height, width = x.shape[:2]
    small = _image(x).resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BOX)
    return _values(small.resize((width, height), Image.Resampling.BOX))


def _jpeg_compression(x: _Values, quality: int, draw: _Draw) -> _Values:
    file = io.BytesIO()
    _image(x).save(file, "JPEG", quality=quality)
    return _values(Image.open(file))


def _image(x: _Values) -> Image.Image:
    return Image.fromarray(np.round(x * 255).astype(np.uint8))


def _values(image: Image.Image) -> _Values:
    return np.asarray(image) / 255


#: Name → function, and its parameter at severities 1 to 5.
_CORRUPTIONS: dict[str, tuple[Callable[[_Values, Any, _Draw], _Values], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
}
