"""Intersection over union (IoU) of segmentations, added up image by image, with a bootstrap over images.

IoU of a class is the number of pixels that have it in both the prediction and the mask, over the number of those that
have it in either, each summed over all images, as in PASCAL VOC (Everingham et al., 2010). mIoU is the mean over the
classes.

The interval is a Poisson bootstrap (Chamandy et al., Google, 2012): in each replicate an image counts as often as a
Poisson variable of mean 1 says. It depends on the image's index alone, so parts of the images can be added up in any
order, and on resuming.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

REPLICATES = 400

#: (1 + REPLICATES, 2, classes): pixels of intersections and of unions; the first row has every image once.
Areas = NDArray[np.int64]


def areas_of(
    predicted: Iterable[NDArray[np.int64]], masks: Iterable[NDArray[np.int64]], indices: Sequence[int], classes: int
) -> Areas:
    """Compare classes of pixels, (H, W) for each image of ``indices``."""
    total = np.zeros((1 + REPLICATES, 2, classes), np.int64)
    for given, mask, index in zip(predicted, masks, indices, strict=True):
        pairs = np.bincount((mask * classes + given).ravel(), minlength=classes**2).reshape(classes, classes)
        both = np.diagonal(pairs)
        either = pairs.sum(axis=0) + pairs.sum(axis=1) - both
        weights = np.concatenate([[1], np.random.default_rng(index).poisson(1.0, REPLICATES)])
        total += weights[:, None, None] * np.stack([both, either])
    return total


def ious(areas: Areas) -> tuple[tuple[float, float, float], list[tuple[float, float, float] | None]]:
    """Compute mIoU and the IoU of each class, each with its 95 % interval; None for a class without any pixel."""
    both, either = areas[:, 0], areas[:, 1]
    shares = np.full(both.shape, np.nan)
    np.divide(both, either, out=shares, where=either > 0)
    known = either[0] > 0
    means = np.nanmean(shares[:, known], axis=1)
    return _interval(means), [_interval(shares[:, k]) if known[k] else None for k in range(len(known))]


def _interval(values: NDArray[np.float64]) -> tuple[float, float, float]:
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)
