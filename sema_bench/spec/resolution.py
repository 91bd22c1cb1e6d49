"""Resolutions from text: ``224..1024``, ``224..1024:96``, ``224,384,512x768``."""

from __future__ import annotations

import re
from typing import NamedTuple

from sema_bench.errors import UsageError

#: Input sizes that the papers of this field test at, in pixels …
LADDER = (224, 288, 384, 512, 640, 768, 896, 1024)
#: … and beyond them, two to an octave.
BEYOND = (1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152)
#: The smallest side that every model takes: four stages halve the map five times.
MIN_SIDE = 32
#: A side beyond this is a typo, not an experiment (2^16 pixels square is 4.3 gigapixels).
MAX_SIDE = 65536
#: More sizes than this are a typo, too.
MAX_SIZES = 10_000

_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})(?::(\d{1,9}))?", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})(?:[xX×](\d{1,9}))?", re.ASCII)
_FORMS = "use A..B, A..B:STEP, a list such as 224,384, or HxW such as 512x768"


class Resolution(NamedTuple):
    """Input size in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @property
    def label(self) -> str:
        """``224`` for a square, ``512x768`` otherwise."""
        return str(self.height) if self.height == self.width else str(self)


def parse_resolutions(text: str) -> tuple[Resolution, ...]:
    """Return the resolutions that ``text`` names, smallest first, each once.

    ``A..B`` is the papers' ladder (224, 288, 384, 512, 640, 768, 896, 1024, then two sizes to an octave) clipped to
    the range, both ends always included; ``A..B:STEP`` counts up by STEP and always ends at B.

    Raises:
        UsageError: the text is in none of the forms, a range runs backwards, or a side lies
            outside 32..65536 pixels.
    """
    parts = [piece.strip() for piece in text.split(",")]
    count = sum(map(_count, parts))
    if count > MAX_SIZES:
        raise UsageError(f"{count:,} resolutions are too many for one run; it takes {MAX_SIZES:,}")
    found: set[Resolution] = set()
    for part in parts:
        if match := _RANGE.fullmatch(part):
            found.update(_expand_range(*match.groups()))
        elif match := _SIZE.fullmatch(part):
            height = int(match[1])
            found.add(_checked(height, int(match[2]) if match[2] else height))
        else:
            raise UsageError(f"bad resolution {part[:40]!r}; {_FORMS}")
    return tuple(sorted(found, key=lambda r: (r.pixels, r.height)))


def _count(part: str) -> int:
    """Return how many sizes a part stands for at most, without making them."""
    match = _RANGE.fullmatch(part)
    if match is None or match[3] is None or int(match[3]) == 0:
        return 1
    return max(1, (min(int(match[2]), MAX_SIDE) - int(match[1])) // int(match[3]) + 1)


def _expand_range(first: str, last: str, step: str | None) -> list[Resolution]:
    start, stop = int(first), int(last)
    if start > stop:
        raise UsageError(f"resolution range {first}..{last} runs backwards; write {last}..{first}")
    _checked(start, start)
    _checked(stop, stop)
    if step is None:
        sides = [side for side in (*LADDER, *BEYOND) if start < side < stop]
    elif int(step) == 0:
        raise UsageError(f"resolution range {first}..{last}:{step} has step 0; give a positive step")
    else:
        sides = list(range(start, stop, int(step)))
    return [Resolution(side, side) for side in {start, *sides, stop}]


def _checked(height: int, width: int) -> Resolution:
    for side in (height, width):
        if side < MIN_SIDE:
            raise UsageError(f"resolution {height}x{width} is too small; every side must be at least {MIN_SIDE} pixels")
        if side > MAX_SIDE:
            raise UsageError(f"resolution {height}x{width} is too large; no side may exceed {MAX_SIDE} pixels")
    return Resolution(height, width)
