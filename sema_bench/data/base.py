"""The contract of a set of labelled images; nothing here imports torch.

Two kinds exist. Photographs have a size of their own and are resized and cropped to the resolution that a model is
asked for; scenes are drawn at that resolution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

#: What a model is given before it is normalised: (H, W, 3), 0 to 255.
Pixels = NDArray[np.uint8]


class UnreadableImageError(Exception):
    """One image cannot be decoded; the message is one line without its name."""


class Photographs(Protocol):
    """Labelled images of any size, by index."""

    #: Names of the classes; a label is an index into them.
    classes: tuple[str, ...]
    #: Where the images are: folders, files, or a name.
    origins: tuple[str, ...]
    #: Whether classes are numbers alone, and there may be more of them than these images show.
    numbered: bool
    #: Names of classes without an image that can be read.
    empty_classes: tuple[str, ...]
    #: What a person should know of these images, a sentence each.
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what messages call this image."""

    def label(self, index: int) -> int:
        """Return its class."""

    def photograph(self, index: int) -> Image:
        """Return it decoded, in RGB.

        Raises:
            UnreadableImageError: it cannot be.
        """


class Scenes(Protocol):
    """Labelled images that are drawn at any size, by index."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what messages call this image."""

    def label(self, index: int) -> int:
        """Return its class."""

    def scene(self, index: int, size: tuple[int, int]) -> Pixels:
        """Draw it, (H, W) pixels large."""
