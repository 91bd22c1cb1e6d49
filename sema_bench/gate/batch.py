"""One batch of the gate: one cell in fresh processes of both arms, sampled in rounds of turns.

In a round the arms take turns, one after the other. A neighbour slows all turns of a round alike, so the arms are
compared within it. L = ln(head / base) of a batch is the median over its rounds, positive if the head is slower.
There are two witnesses: ``time``, process CPU time on a CPU and event time on CUDA, and ``wall``. Work that no longer
runs in parallel shows only in ``wall``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WITNESSES = ("time", "wall")


@dataclass(frozen=True)
class Side:
    """The times of one arm in one turn, or in one batch; they must be positive.

    Attributes:
        time_s: process CPU time (CPU) or event time (CUDA) of a forward pass.
        wall_s: its wall time.
    """

    time_s: float
    wall_s: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.time_s, self.wall_s)):
            raise ValueError(f"a time is not a positive number: {self.time_s}, {self.wall_s}")

    def log(self, witness: str) -> float:
        return math.log(self.time_s if witness == "time" else self.wall_s)


@dataclass(frozen=True)
class Batch:
    """One cell in fresh processes of both arms."""

    base: Side
    head: Side

    def slowdown(self, witness: str) -> float:
        """Return L: ln(head / base)."""
        return self.head.log(witness) - self.base.log(witness)


def batch_of(base: Sequence[Side], head: Sequence[Side]) -> Batch:
    """Make a batch of the turns of each arm, in the order of the rounds.

    The base is its median; the head is that median times the median of the ratios over rounds.
    """
    time, wall = statistics.median(turn.time_s for turn in base), statistics.median(turn.wall_s for turn in base)
    ratios = [math.exp(statistics.median(_apart(base, head, witness))) for witness in WITNESSES]
    return Batch(Side(time, wall), Side(time * ratios[0], wall * ratios[1]))


def uncertainty(base: Sequence[Side], other: Sequence[Side]) -> float:
    """Estimate the standard error of ln(other / base) over rounds in ``time``, from the median deviation."""
    apart = _apart(base, other, "time")
    middle = statistics.median(apart)
    sigma = statistics.median([abs(value - middle) for value in apart]) / statistics.NormalDist().inv_cdf(0.75)
    return math.sqrt(math.pi / 2 / len(apart)) * sigma


def _apart(base: Sequence[Side], other: Sequence[Side], witness: str) -> list[float]:
    """Return ln(other / base) of each round."""
    return [b.log(witness) - a.log(witness) for a, b in zip(base, other, strict=True)]
