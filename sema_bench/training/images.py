"""What a model is trained on: scenes that are new in each epoch, or photographs cropped and augmented at random.

What chance does to an image depends on the seed, the epoch and the image alone, not on which process prepares it: a run
that was stopped goes on with the very images that it would have seen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from sema_bench.data.base import Pixels, UnreadableImageError
from sema_bench.data.datasets import Unreadable, open_photographs
from sema_bench.data.preprocess import MEAN, resized_and_cropped
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.recipe import Recipe

#: Images of one epoch of scenes, which have no end.
SCENES_PER_EPOCH = 6400
#: Shapes of random crops, width over height, and how often one is tried before the whole image is taken.
_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


class TrainingImages:
    """Images of the training part of ``spec``, prepared as ``recipe`` says.

    Attributes:
        classes: names of the classes.
        origins: folders, files or names of where they are.
        notes: what a person should know of them, a sentence each.

    Raises:
        UsageError: the data is not there, or the recipe asks for what is not installed.
    """

    def __init__(self, spec: DataSpec, recipe: Recipe, *, seed: int) -> None:
        self._recipe = recipe
        self._seed = seed
        self._crop_pct = 1.0 if spec.drawn else float(spec.option("crop_pct"))
        self._scenes: Any = None
        self._photographs: Any = None
        if spec.drawn:
            from sema_bench.data.scenes import DigitScenes

            _refuse_for_scenes(recipe)
            self._length = recipe.epoch_images or SCENES_PER_EPOCH
            self._scenes = DigitScenes(spec.location, "train", images=self._length, seed=seed)  # type: ignore[arg-type]
            self.classes: tuple[str, ...] = self._scenes.classes
            self.origins: tuple[str, ...] = (f"{spec}, training digits",)
            self.notes: tuple[str, ...] = ()
        else:
            self._photographs = open_photographs(spec.training, "train")
            self.classes, self._length = self._photographs.classes, len(self._photographs)
            self.origins, self.notes = self._photographs.origins, self._photographs.notes
        self._augment = _randaugment(recipe.randaugment, recipe.size) if recipe.randaugment else None

    def __len__(self) -> int:
        return self._length

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the indices of one epoch, shuffled."""
        return np.random.default_rng((self._seed, epoch)).permutation(self._length)

    def sample(self, epoch: int, index: int) -> tuple[Pixels, int] | Unreadable:
        """Return image ``index`` as epoch ``epoch`` shows it, and its label, or why there is none."""
        if self._scenes is not None:
            pixels, label = self._scenes.training_scene(epoch * self._length + index, self._recipe.size)
            return pixels, label
        try:
            image = self._photographs.photograph(index)
            pixels = self._prepared(image, np.random.default_rng((self._seed, epoch, index)))
        except UnreadableImageError as problem:
            return Unreadable(self._photographs.name(index), str(problem))
        return pixels, self._photographs.label(index)

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
    """Return a part of ``image`` of a random share of its area and a random shape, bicubic, (H, W) large.

    Source: the Inception crop, Szegedy et al., arXiv 1409.4842, as torchvision's RandomResizedCrop does it.
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
        transform = rand_augment_transform(policy, {"translate_const": int(min(size) * 0.45), "img_mean": fill})
    except (AssertionError, ValueError, KeyError):
        raise UsageError(f"randaugment: {policy!r} is no policy of timm; write e.g. rand-m9-mstd0.5-inc1") from None
    return transform  # type: ignore[no-any-return]


def _refuse_for_scenes(recipe: Recipe) -> None:
    """Scenes know no crops and mirror images: a mirrored digit is no digit."""
    given = [name for name in ("randaugment", "flip", "erasing") if getattr(recipe, name)]
    if given or recipe.scale != (1.0, 1.0):
        raise UsageError(
            f"{given[0] if given else 'scale'} is for photographs; scenes of digits are drawn anew instead"
        )
