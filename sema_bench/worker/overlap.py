"""Intersection over union (IoU) of segmentations, added up image by image, with a bootstrap over images.

IoU of a class is the number of pixels that have it in both the prediction and the mask, over the number of those that
have it in either, each summed over all images, as in PASCAL VOC (Everingham et al., 2010). mIoU is the mean over the
classes.

The interval is a Poisson bootstrap (Chamandy et al., Google, 2012): in each replicate an image counts as often as a
Poisson variable of mean 1 says. The count depends only on the image's index, so parts of the images can be added up in
any order, also after resuming. Resampling a few images says nothing about others: mIoU of fewer than six images has no
interval, and neither has a class that fewer than six images show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sema_bench.statistics import FEWEST_FOR_INTERVAL

REPLICATES = 400

#: (1 + REPLICATES, 3, classes): pixels of intersections and of unions, images with any; the first row has every image
#: once.
Areas = NDArray[np.int64]
#: A value and its 95 % interval, if there are enough images.
Share = tuple[float, float | None, float | None]


def no_areas(classes: int) -> Areas:
    """Return the areas of no image."""
    return np.zeros((1 + REPLICATES, 3, classes), np.int64)


def areas_of(
    predicted: Iterable[NDArray[np.int64]], masks: Iterable[NDArray[np.int64]], indices: Sequence[int], classes: int
) -> Areas:
    """Compare classes of pixels, (H, W) for each image of ``indices``."""
    total = no_areas(classes)
    for given, mask, index in zip(predicted, masks, indices, strict=True):
        pairs = np.bincount((mask * classes + given).ravel(), minlength=classes**2).reshape(classes, classes)
        both = np.diagonal(pairs)
        either = pairs.sum(axis=0) + pairs.sum(axis=1) - both
        weights = np.concatenate([[1], np.random.default_rng(index).poisson(1.0, REPLICATES)])
        total += weights[:, None, None] * np.stack([both, either, either > 0])
    return total


def ious(areas: Areas, images: int) -> tuple[Share, list[Share | None]]:
    """Compute mIoU of ``images`` and the IoU of each class; None for a class without any pixel."""
    both, either, having = areas[:, 0], areas[:, 1], areas[0, 2]
    shares = np.full(both.shape, np.nan)
    np.divide(both, either, out=shares, where=either > 0)
    known = having > 0
    means = np.nanmean(shares[either.any(axis=1)][:, known], axis=1)  # a replicate may have no image
    return _interval(means, images), [_interval(shares[:, k], n) if n else None for k, n in enumerate(having)]


def _interval(values: NDArray[np.float64], images: int) -> Share:
    if images < FEWEST_FOR_INTERVAL:
        return float(values[0]), None, None
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return float(values[0]), float(low), float(high)
