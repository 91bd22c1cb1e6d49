"""Recognise image files by suffix or first bytes, and files that an operating system or a tool left behind.

An image of a format that cannot be decoded counts as unreadable.
"""

from __future__ import annotations

import re
from typing import IO

#: Every Pillow reads these; others need a library.
COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_SUFFIXES = (
    *COMMON_SUFFIXES,
    *(".jfif", ".jfi", ".jif", ".jpe", ".mpo", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".qoi"),
    # Not read: convert them.
    *(".heic", ".heif", ".jxl", ".jxr", ".bpg", ".exr", ".hdr", ".tga", ".psd", ".ico", ".svg", ".eps", ".pcx"),
    *(".dds", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".xcf"),
)

#: How the files of each format begin.
_FORMATS = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WEBP", rb"RIFF....WEBP"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("PPM", rb"P[1-6f]\s+(#|\d+\s+\d+\s)"),
    ("JPEG2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("AVIF", rb".{4}ftypavi[fs]"),
    ("QOI", rb"qoif.{8}[34][01]"),
    ("HEIF", rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
    ("JPEG XL", rb"\0\0\0\x0cJXL \r\n\x87\n"),
    ("PSD", rb"8BPS\0[\x01\x02]"),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance HDR", rb"#\?RADIANCE"),
)
_HEAD_BYTES = 32

_STRAY = frozenset(
    (
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("@eadir", "@__thumb", "@recycle", "@tmp", "#recycle", "#snapshot", "lost+found", "__pycache__"),
    )
)


def is_stray(name: str) -> bool:
    """Check whether a file or folder is hidden, or made by a system (``__MACOSX``, ``@eaDir``, …)."""
    return name not in (".", "..") and (name.startswith(".") or name.casefold() in _STRAY)


def has_image_suffix(name: str) -> bool:
    """Check whether a file has the suffix of an image."""
    return name.lower().endswith(_SUFFIXES)


def image_format(file: IO[bytes]) -> str:
    """Recognise the format of an image by its first bytes; "" for other files."""
    head = file.read(_HEAD_BYTES)
    return next((name for name, beginning in _FORMATS if re.match(beginning, head, re.DOTALL)), "")
