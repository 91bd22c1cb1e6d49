"""Read resolutions: ``224..1024``, ``224..1024:96``, ``224,384,512x768``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from sema_bench.errors import UsageError

#: Input sizes, in pixels, at which the papers of this field test.
LADDER = (224, 288, 384, 512, 640, 768, 896, 1024)
#: Larger sizes, two per octave.
BEYOND = (1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152)
#: The smallest side that every model takes: four stages halve the map five times.
MIN_SIDE = 32
#: A side beyond this is a typo, not an experiment (2^16 pixels square is 4.3 gigapixels).
MAX_SIDE = 65536
MAX_SIZES = 10_000

#: Stands for the size in ``USUAL_SIZES``.
USUAL = "usual"

_RANGE = re.compile(r"(\d{1,9})\.\.(\d{1,9})(?::(\d{1,9}))?", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})(?:[xX×](\d{1,9}))?", re.ASCII)


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


#: Task → the size at which papers count its cost: ImageNet, COCO, ADE20K.
USUAL_SIZES = {
    "classify": Resolution(224, 224),
    "detect": Resolution(800, 1280),
    "segment": Resolution(512, 2048),
}


def sizes_of(text: str, task: str = "classify") -> tuple[Resolution, ...]:
    """Read resolutions as ``parse_resolutions`` does; ``usual`` is the size of ``task`` in ``USUAL_SIZES``."""
    return (USUAL_SIZES[task],) if text == USUAL else parse_resolutions(text)


def parse_resolutions(text: str) -> tuple[Resolution, ...]:
    """Read the resolutions that ``text`` names, smallest first, each once; raise UsageError for other text.

    ``A..B`` is the papers' ladder clipped to the range, both ends always included; ``A..B:STEP`` counts up by STEP and
    always ends at B.
    """
    sizes: set[Resolution] = set()
    squares: list[Sequence[int]] = []
    for part in (piece.strip() for piece in text.split(",")):
        if match := _RANGE.fullmatch(part):
            squares += _expand_range(*match.groups())
        elif match := _SIZE.fullmatch(part):
            sizes.add(_checked(int(match[1]), int(match[2] or match[1])))
        else:
            raise UsageError(
                f"bad resolution {part[:40]!r}; use A..B, A..B:STEP, a list such as 224,384, or HxW such as 512x768"
            )
    if (count := len(sizes) + sum(map(len, squares))) > MAX_SIZES:
        raise UsageError(f"{count:,} resolutions are too many for one run; it takes {MAX_SIZES:,}")
    sizes |= {Resolution(side, side) for sides in squares for side in sides}
    return tuple(sorted(sizes, key=lambda size: (size.pixels, size.height)))


def _expand_range(first: str, last: str, step: str | None) -> list[Sequence[int]]:
    """List the sides of a range, its end last; steps stay a ``range``, which may be very long."""
    start, stop = int(first), int(last)
    if start > stop:
        raise UsageError(f"resolution range {first}..{last} runs backwards; write {last}..{first}")
    _checked(start, start)
    _checked(stop, stop)
    if step is None:
        return [[start, *(side for side in (*LADDER, *BEYOND) if start < side < stop), stop]]
    if int(step) == 0:
        raise UsageError(f"resolution range {first}..{last}:{step} has step 0; give a positive step")
    return [range(start, stop, int(step)), [stop]]


def _checked(height: int, width: int) -> Resolution:
    for side in (height, width):
        if side < MIN_SIDE:
            raise UsageError(f"resolution {height}x{width} is too small; every side must be at least {MIN_SIDE} pixels")
        if side > MAX_SIDE:
            raise UsageError(f"resolution {height}x{width} is too large; no side may exceed {MAX_SIDE} pixels")
    return Resolution(height, width)
