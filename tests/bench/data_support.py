"""An image for the data tests."""

from __future__ import annotations

import numpy as np
from PIL import Image


def gradient(height=20, width=30):
    """Return an image whose pixels all differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows * 5, columns * 5, rows + columns], axis=-1).astype(np.uint8))
