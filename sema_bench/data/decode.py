"""Decode an image file of any format to RGB, or say in one line why that fails. Files are never trusted.

Values of 16 bits keep the upper eight. Other values of more than eight bits (signed, 12 or 32 bits, floating point)
have no certain scale, so their images are unreadable.
"""

from __future__ import annotations

import functools
import io
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.image_files import image_format
from sema_bench.errors import first_line

#: Formats to try, if this Pillow has them; its other plugins run external programs or have no magic bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000", "AVIF", "QOI")
#: Formats that need a library → Pillow's name of it.
_LIBRARIES = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
#: TIFF's tags: how many bits a sample has, what its values mean (0: white is zero), and their type (2: signed).
_BITS, _MEANING, _TYPE = 258, 262, 339


def decode(source: Path | bytes) -> Image.Image:
    """Decode the image in ``source`` to RGB; raise UnreadableImageError if that fails.

    Transparent pixels keep their colour. The camera's orientation tag is ignored, as in the field's loaders.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _opened(source) as image:
                image.load()
                return _rgb(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError(_why_unidentified(source)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Exception as problem:  # decoders raise any type on a damaged file
        why = problem.strerror if isinstance(problem, OSError) and problem.strerror else first_line(problem)
        raise UnreadableImageError(why[:200]) from None


def begins_as_image(path: Path) -> bool:
    """Check whether the header of an image can be read; its pixels may still be damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _opened(path):
                return True
    except Exception:  # as above
        return False


def _opened(source: Path | bytes) -> Image.Image:
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise UnreadableImageError("not a file")  # opening a pipe would block forever
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_available())


@functools.cache
def _available() -> tuple[str, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about libraries that this Pillow does not know
        return tuple(name for name in _FORMATS if name not in _LIBRARIES or features.check(_LIBRARIES[name]))


def _why_unidentified(source: Path | bytes) -> str:
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            name = image_format(file)
    except OSError:  # it was removed
        name = ""
    if name and name not in _available():
        return f"{name} images are not read here; convert it to PNG or JPEG"
    if name:
        return f"a {name} image that is damaged, or of a kind that is not read"
    return "not an image, or of a format that is not read"


def _rgb(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    plain = tags.get(_BITS, (16,))[0] == 16 and tags.get(_TYPE, (1,))[0] == 1 and tags.get(_MEANING) != 0
    if (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))) and plain:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "LAB") or image.mode.startswith("I") or tags.get(_TYPE, (1,))[0] == 2:
        raise UnreadableImageError("its values are not of 8 or 16 bits, from black to white; save it as PNG")
    if image.mode == "La":  # grey, multiplied by its opacity; Pillow converts it only to LA
        return image.convert("LA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
