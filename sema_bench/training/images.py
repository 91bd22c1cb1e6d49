"""Training images: scenes that are new in each epoch, or photographs cropped and augmented at random.

Augmentation depends on the seed, the epoch and the image alone, so a resumed run sees the same images.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sema_bench.data.base import Photographs, Pixels, Sample
from sema_bench.data.datasets import open_photographs
from sema_bench.data.preprocess import MEAN, resized_and_cropped
from sema_bench.data.scenes import DigitScenes
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.recipe import Recipe

#: Images of one epoch of scenes, which have no end.
SCENES_PER_EPOCH = 6400
#: Shapes of random crops, width over height, and how often one is tried before the whole image is taken.
_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


class TrainingImages:
    """Images of the training part of ``spec``, prepared by ``recipe``; ``Photographs`` describes the attributes."""

    def __init__(self, spec: DataSpec, recipe: Recipe, *, seed: int) -> None:
        self._recipe = recipe
        self._seed = seed
        self._images: DigitScenes | Photographs
        if spec.drawn:
            _refuse_for_scenes(recipe)
            count = recipe.epoch_images or SCENES_PER_EPOCH
            self._images = DigitScenes(spec.location, "train", images=count, seed=seed)
        else:
            self._crop_pct = float(spec.option("crop_pct"))
            self._images = open_photographs(spec.training, "train")
        self.classes, self.origins, self.notes = self._images.classes, self._images.origins, self._images.notes
        self._augment = _randaugment(recipe.randaugment, recipe.size) if recipe.randaugment else None

    def __len__(self) -> int:
        return len(self._images)

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Shuffle the indices of one epoch."""
        return np.random.default_rng((self._seed, epoch)).permutation(len(self))

    def sample(self, epoch: int, index: int) -> Sample:
        """Return image ``index`` as epoch ``epoch`` shows it, with its label, or why it cannot be read."""
        if isinstance(self._images, DigitScenes):
            return self._images.training_scene(epoch * len(self) + index, self._recipe.size)
        generator = np.random.default_rng((self._seed, epoch, index))
        return self._images.sample(index, functools.partial(self._prepared, generator=generator))

    def _prepared(self, image: Image.Image, generator: np.random.Generator) -> Pixels:
        recipe = self._recipe
        if recipe.scale == (1.0, 1.0):
            image = Image.fromarray(resized_and_cropped(image, recipe.size, crop_pct=self._crop_pct))
        else:
            image = random_crop(image, recipe.size, recipe.scale, generator)
        if generator.random() < recipe.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._augment is not None:  # it draws from the global generators
            random.seed(int(generator.integers(2**32)))
            np.random.seed(int(generator.integers(2**32)))
            image = self._augment(image)
        return np.asarray(image)


def random_crop(
    image: Image.Image, size: tuple[int, int], scale: tuple[float, float], generator: np.random.Generator
) -> Image.Image:
    """Crop a random share of the area of ``image`` in a random shape, and resize it to (H, W), bicubic.

    Source: the Inception crop, Szegedy et al., arXiv 1409.4842, as in torchvision's RandomResizedCrop.
    """
    width, height = image.size
    for _ in range(_CROP_TRIES):
        area = width * height * generator.uniform(*scale)
        ratio = math.exp(generator.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            break
    else:  # the middle, as large as the shape allows
        w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
        left, top = (width - w) // 2, (height - h) // 2
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))


def _randaugment(policy: str, size: tuple[int, int]) -> Callable[[Image.Image], Image.Image]:
    try:
        from timm.data.auto_augment import rand_augment_transform
    except ImportError:
        raise UsageError("randaugment needs timm, which is not installed; pip install 'sema-bench[timm]'") from None
    fill = tuple(round(255 * value) for value in MEAN)
    try:
        transform: Callable[[Image.Image], Image.Image] = rand_augment_transform(
            policy, {"translate_const": int(min(size) * 0.45), "img_mean": fill}
        )
    except (AssertionError, ValueError, KeyError):
        raise UsageError(f"randaugment: {policy!r} is not a policy of timm; write e.g. rand-m9-mstd0.5-inc1") from None
    return transform


def _refuse_for_scenes(recipe: Recipe) -> None:
    """Refuse crops and mirror images of scenes: a mirrored digit has no class."""
    for name in ("randaugment", "flip", "erasing", "scale"):
        if getattr(recipe, name) not in ("", 0.0, (1.0, 1.0)):
            raise UsageError(f"{name} is for photographs; scenes of digits are drawn anew instead")
