"""Name corruptions of test images: ``fog:3``; ``fog:1..5`` or ``all:5`` for several; ``none``.

These are the corruptions of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, arXiv 1903.12261) that need neither
photographs nor OpenCV.
"""

from __future__ import annotations

import re

from sema_bench.errors import UsageError, unknown_name

NONE = "none"
#: The corruptions of ImageNet-C's benchmark, in its order.
BENCHMARK = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "motion_blur",
    "zoom_blur",
    "fog",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
)
#: The same, then ImageNet-C's validation corruptions.
CORRUPTIONS = (*BENCHMARK, "speckle_noise", "gaussian_blur")
SEVERITIES = range(1, 6)
_FORM = re.compile(r"([^:]*):(\d+)(?:\.\.(\d+))?", re.ASCII)


def expand_corruption(text: str) -> list[str]:
    """Expand ``text``: ``fog:1..3`` is ``fog:1``, ``fog:2``, ``fog:3``; ``all:5`` is the whole benchmark at 5."""
    if text == NONE:
        return [NONE]
    match = _FORM.fullmatch(text)
    name = match[1] if match else text.partition(":")[0]
    if name not in (*CORRUPTIONS, "all"):
        raise unknown_name("corruption", name, (NONE, "all", *CORRUPTIONS))
    if not match or len(text) > 40:
        raise UsageError(f"corruption {text[:40]!r} has no severity; write {name}:3 or {name}:1..5")
    first, last = int(match[2]), int(match[3] or match[2])
    if not SEVERITIES[0] <= first <= last <= SEVERITIES[-1]:
        raise UsageError(f"corruption {text!r}: severities are 1 to 5; write {name}:1..5")
    return [f"{each}:{n}" for each in (BENCHMARK if name == "all" else (name,)) for n in range(first, last + 1)]


def check_corruption(text: str) -> str:
    """Return ``text``; raise UsageError unless it names one corruption at one severity, or ``none``."""
    if expand_corruption(text) != [text]:
        raise UsageError(f"{text!r} stands for several corruptions; a cell has one")
    return text


def split_corruption(text: str) -> tuple[str, int]:
    """Split ``fog:3`` into its name and its severity."""
    name, _, severity = text.partition(":")
    return name, int(severity)
