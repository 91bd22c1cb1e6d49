"""Which files are images, and which files and folders are left behind by an operating system or a tool.

A file is an image if its suffix is that of one, or if it begins as one: people have JPEGs without a suffix, and files
that a camera, a phone or a microscope wrote. Whether it can be read is seen when it is decoded: an image of a format
that is not read is counted and named as unreadable.
"""

from __future__ import annotations

import os
import re

#: Read on every machine; others need a Pillow that was built with their library.
COMMON_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_SUFFIXES = (
    *COMMON_SUFFIXES,
    *(".jfif", ".jfi", ".jif", ".jpe", ".mpo", ".apng", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs", ".qoi"),
    # Not read: convert them.
    *(".heic", ".heif", ".jxl", ".jxr", ".bpg", ".exr", ".hdr", ".tga", ".psd", ".ico", ".svg", ".eps", ".pcx"),
    *(".dds", ".dcm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".xcf"),
)

#: Bytes that an image of each format begins with.
_BEGINNINGS = (
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
_FORMATS = tuple((name, re.compile(beginning, re.DOTALL)) for name, beginning in _BEGINNINGS)
#: So many bytes of a file tell its format.
HEAD_BYTES = 32

_STRAY = frozenset(
    (
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("@eadir", "@__thumb", "@recycle", "@tmp", "#recycle", "#snapshot", "lost+found", "__pycache__"),
    )
)


def is_stray(name: str) -> bool:
    """Tell whether a file or folder is hidden, or is one that no person put there (``__MACOSX``, ``@eaDir``, …)."""
    return name.startswith(".") or name.casefold() in _STRAY


def has_image_suffix(name: str) -> bool:
    """Tell whether a file's name is that of an image."""
    return name.lower().endswith(_SUFFIXES)


def without_image_suffix(name: str) -> str:
    """Return a file's name without the suffix of an image."""
    return os.path.splitext(name)[0] if has_image_suffix(name) else name  # noqa: PTH122 - may be of another system


def image_format(head: bytes) -> str:
    """Return the format of the image that begins with ``head``; "" if it is none."""
    return next((name for name, beginning in _FORMATS if beginning.match(head)), "")
