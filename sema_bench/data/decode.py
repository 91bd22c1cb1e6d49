"""Decode an image file of any format to RGB, or say in one line why that fails. Files are never trusted.

One rule, which the documentation states, scales values of more than eight bits:

- 16 bits, or 12 in a TIFF: the upper eight remain;
- 32-bit integers within 0…255 stay; within 0…65535 they are 16-bit values;
- floating point within 0…1 is multiplied by 255; within 0…255, from a largest value of 2 on, it stays;
- everything else (negative values, NaN, larger ones) is unreadable: no scale is certain.
"""

from __future__ import annotations

import functools
import io
import stat
import warnings
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError, features

from sema_bench.data.base import UnreadableImageError
from sema_bench.data.image_files import image_format
from sema_bench.errors import first_line

#: Formats to try, if this Pillow has them; its other plugins run external programs or have no magic bytes.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", "JPEG2000", "AVIF", "QOI")
#: Those that need a library, by Pillow's name of it.
_LIBRARIES = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
#: TIFF's tags: how many bits a sample has, what its values mean (0: white is zero), and their type (2: signed).
_BITS, _MEANING, _TYPE = 258, 262, 339


def decode(source: Path | bytes) -> Image.Image:
    """Decode the image in ``source`` to RGB; raise UnreadableImageError if that fails.

    Transparent pixels keep their colour. A camera's note of the orientation is ignored, as in the field's loaders.
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
        raise UnreadableImageError("not a file")  # opening a pipe would wait for ever
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
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip them to 255
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "L" and getattr(image, "tag_v2", {}).get(_TYPE, (1,))[0] == 2:  # -1 would become white
        raise UnreadableImageError("signed 8-bit values are not read; write values from 0 to 255")
    if image.mode == "LAB":  # Pillow's own conversion takes the three channels for red, green and blue
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return cast(Image.Image, ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    if image.mode == "La":  # grey, multiplied by its opacity; Pillow converts it to LA alone
        return image.convert("LA").convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Scale the values of a grey image, (H, W), by the module's rule."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    low, high = values.min(), values.max()
    if not 0 <= low <= high:
        problem = f"its values start at {low:g}" if low < 0 else "some of its values are NaN"
        raise UnreadableImageError(f"{problem}; write values from 0 to 255")
    if image.mode == "F":
        if 1 < high < 2:  # 0…1 with some overshoot, or an image that is all but black?
            raise UnreadableImageError(f"its values reach {high:g}; write values from 0 to 1, or from 0 to 255")
        largest, eight = 255, np.rint(values * (255.0 if high <= 1 else 1.0))
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # whose values are 16 bits wide
        largest, eight = 65535, values if high <= 255 else values >> 8
    else:
        bits = tags.get(_BITS, (16,))[0]
        largest, eight = 65535, values >> (bits - 8)
    if high > largest:
        raise UnreadableImageError(f"its values reach {high:g}, more than {largest}; write values from 0 to 255")
    shown = eight.astype(np.uint8)
    return 255 - shown if tags.get(_MEANING) == 0 else shown
