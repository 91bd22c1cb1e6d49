"""Where ticks and labels of a figure go: plain arithmetic, no matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Mantissas of ticks, coarse to fine.
_STEPS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
)


def log_ticks(low: float, high: float) -> list[float]:
    """Return about four to nine round values between ``low`` and ``high`` for a log axis of any span."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > 10:
        return [10.0**decade for decade in decades[:: math.ceil(len(decades) / 9)] if low <= 10.0**decade <= high]
    for steps in _STEPS:
        ticks = [float(f"{step * 10.0**decade:.12g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    # Less than a fifth of a decade: a log axis is nearly linear there, and so are its ticks.
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def spread_labels(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return ``heights`` moved as little as needed to lie ``gap`` apart within [low, high], order kept.

    Neighbours that touch form a group whose mean stays where it was (isotonic regression on the heights
    less their ranks). Where they cannot all fit, they share the range evenly.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    if not order:
        return []
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    groups: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = heights[index] - rank * gap, 1
        while groups and groups[-1][0] >= mean:
            other, count = groups.pop()
            mean, size = (other * count + mean * size) / (count + size), count + size
        groups.append((mean, size))
    flat = [mean for mean, size in groups for _ in range(size)]
    ceiling = high - (len(order) - 1) * gap
    placed = [0.0] * len(order)
    for rank, index in enumerate(order):
        placed[index] = min(max(flat[rank], low), ceiling) + rank * gap
    return placed
