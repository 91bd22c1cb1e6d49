"""Any image file to RGB, or one line that says why not. What a file holds is never trusted."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sema_bench.data.base import UnreadableImageError

#: Formats that are tried; others of Pillow's plugins run external programs or are never photographs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")


def decode(source: Path | bytes) -> Image.Image:
    """Return the image that ``source`` holds, in RGB.

    Grey, palette and CMYK images are converted; of 16-bit ones the upper eight bits are kept, and what is transparent
    shows the colour below. The orientation that a camera noted is left alone, as the field's loaders do.

    Raises:
        UnreadableImageError: the file is damaged, too large, or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is not used
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
                image.load()
                return _rgb(image)
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image, or of a format that is not read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Exception as problem:  # decoders raise their own of every kind on a damaged file
        lines = str(problem).splitlines() or [type(problem).__name__]
        raise UnreadableImageError(lines[0][:200]) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip them to 255
        wide = np.asarray(image).astype(np.float64)
        eight = wide / 257 if image.mode.startswith("I") else wide
        return Image.fromarray(np.clip(eight, 0, 255).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
