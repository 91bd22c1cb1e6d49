"""Training images: scenes that are new in each epoch, or photographs that timm crops and augments at random.

Augmentation depends only on the seed, the epoch and the place in it, so a resumed run sees the same images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.utils import random_seed

from sema_bench.data.base import Photographs, Pixels, Sample
from sema_bench.data.datasets import open_photographs
from sema_bench.data.preprocess import MEAN, STD
from sema_bench.data.scenes import DigitScenes
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.recipe import Recipe

#: Images in one epoch of scenes, whose number is unlimited.
SCENES_PER_EPOCH = 6400
#: Keys of a recipe that are only for photographs, and the values that turn them off.
_FOR_PHOTOGRAPHS = {"randaugment": "", "flip": 0.0, "erasing": 0.0, "scale": (1.0, 1.0), "repeats": 1}
#: The same for images that have one class, not one per pixel.
_FOR_WHOLE_IMAGES = {"mixup": 0.0, "cutmix": 0.0, "mesa": 0.0}


class TrainingImages:
    """Images of the training part of ``spec``, prepared by ``recipe``; ``Photographs`` describes the attributes."""

    def __init__(self, spec: DataSpec, recipe: Recipe, *, seed: int) -> None:
        self._recipe = recipe
        self._seed = seed
        self._images: DigitScenes | Photographs
        if spec.drawn:
            for key, off in _FOR_PHOTOGRAPHS.items():
                if getattr(recipe, key) != off:
                    raise UsageError(f"{key} is for photographs; scenes of digits are drawn anew instead")
            for key, off in _FOR_WHOLE_IMAGES.items() if spec.segmented else ():
                if getattr(recipe, key) != off:
                    raise UsageError(f"{key} is for images of one class, and each pixel of {spec} has its own")
            count = recipe.epoch_images or SCENES_PER_EPOCH
            self._images = DigitScenes(spec.location, "train", images=count, seed=seed)
        else:
            self._images = open_photographs(spec.training, "train")
            self._transform = _transform(recipe)
        self.classes, self.origins, self.notes = self._images.classes, self._images.origins, self._images.notes

    def __len__(self) -> int:
        return len(self._images)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Shuffle the indices of one epoch; repeats follow each other, as in DeiT's code."""
        shuffled = np.random.default_rng((self._seed, epoch)).permutation(len(self))
        return shuffled.repeat(self._recipe.repeats)[: len(self)]

    def sample(self, epoch: int, order: NDArray[np.int64], place: int) -> Sample:
        """Return the image at ``place`` in the ``order`` of an epoch with its label, or why it cannot be read."""
        index = int(order[place])
        if isinstance(self._images, DigitScenes):
            return self._images.training_scene(epoch * len(self) + index, self._recipe.size)

        def prepare(image: Image.Image) -> Pixels:
            seed = np.random.SeedSequence((self._seed, epoch, place))
            random_seed(int(seed.generate_state(1)[0]))  # timm and torchvision draw from the global generators
            return np.moveaxis(np.asarray(self._transform(image)), 0, -1)

        return self._images.sample(index, prepare)


def _transform(recipe: Recipe) -> Callable[[Image.Image], object]:
    """Make timm's transform to (3, H, W) of 8 bits; batches are normalised and erased later, on the device."""
    height, width = recipe.size
    try:
        transform: Callable[[Image.Image], object] = create_transform(
            recipe.size,
            is_training=True,
            scale=recipe.scale,
            ratio=(width / height, width / height) if recipe.scale == (1.0, 1.0) else None,
            hflip=recipe.flip,
            color_jitter=None,  # has no effect with RandAugment, which all papers use
            auto_augment=recipe.randaugment or None,
            interpolation=recipe.interpolation,
            mean=MEAN,
            std=STD,
            use_prefetcher=True,
        )
    except (AssertionError, ValueError, KeyError):
        raise UsageError(
            f"randaugment: {recipe.randaugment!r} is not a policy of timm; write e.g. rand-m9-mstd0.5-inc1"
        ) from None
    return transform
