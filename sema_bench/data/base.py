"""The contract of photographs: labelled images of any size, which are resized and cropped to a model's resolution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

#: Input of a model before normalisation: (H, W, 3), 0 to 255.
Pixels = NDArray[np.uint8]
#: Index of the class of each pixel: (H, W).
Mask = NDArray[np.uint8]
#: Label of an image: the index of its class, or of each pixel's class.
Label = int | Mask


class UnreadableImageError(Exception):
    """One image cannot be decoded; the message is one line without its name."""


class Unreadable(NamedTuple):
    """An image that could not be decoded."""

    name: str
    reason: str


Sample = tuple[Pixels, Label] | Unreadable


@dataclass(kw_only=True)
class Photographs(ABC):
    """Labelled images of any size, by index."""

    labels: Sequence[int]  # indices into ``classes``
    classes: tuple[str, ...]
    origins: tuple[str, ...]  # folders, files or names of the images
    numbered: bool = False  # the classes are numbers, and there may be more of them than these images show
    empty_classes: tuple[str, ...] = ()  # classes without a readable image
    notes: tuple[str, ...] = ()  # remarks, a sentence each

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Name this image for messages."""

    @abstractmethod
    def photograph(self, index: int) -> Image:
        """Decode this image to RGB; raise UnreadableImageError if that fails."""

    def sample(self, index: int, prepare: Callable[[Image], Pixels]) -> Sample:
        """Decode and prepare image ``index``; return it with its label, or why it cannot be read."""
        try:
            return prepare(self.photograph(index)), self.labels[index]
        except UnreadableImageError as problem:
            return Unreadable(self.name(index), str(problem))
