"""Handwritten digits as glyphs: the 1,797 images of 8×8 pixels that come with scikit-learn, in two disjoint parts.

They are the test part of the UCI data "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

#: Side of a glyph in pixels: twice what the digits were scanned at.
GLYPH = 16
#: Every third digit of each class is kept for testing.
_TEST_EVERY = 3
_LEVELS = 16.0


class Glyphs:
    """The digits of one part.

    Attributes:
        images: (n, GLYPH, GLYPH), 0 to 255.
        labels: (n,), 0 to 9.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images = images
        self.labels = labels


@functools.cache
def glyphs(split: Split) -> Glyphs:
    """Return the digits of ``split``, smoothed to twice their size."""
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    chosen = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        chosen[np.flatnonzero(labels == digit)[::_TEST_EVERY]] = True
    if split == "train":
        chosen = ~chosen
    images = _twice_as_large(small[chosen].reshape(-1, 8, 8) / _LEVELS)
    return Glyphs(np.round(images * 255).astype(np.uint8), labels[chosen].astype(np.int64))


def _twice_as_large(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate (n, 8, 8) linearly to (n, 16, 16), with pixel centres aligned; black beyond the edge."""
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (1, 1)
        padded = np.moveaxis(np.pad(images, pad), axis, 0)
        middle, before, after = padded[1:-1], padded[:-2], padded[2:]
        pair = np.stack((0.75 * middle + 0.25 * before, 0.75 * middle + 0.25 * after), axis=1)
        images = np.moveaxis(pair.reshape(-1, *pair.shape[2:]), 0, axis)
    return images
