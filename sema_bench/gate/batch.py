"""One batch of the gate: one cell in fresh processes of both arms, as rounds of turns and as what they come to.

In a round each arm has a turn, one after the other. A neighbour slows the turns of a round alike, so the arms are
compared within it, and L = ln(head / base) of a batch is the median over its rounds, positive where the head is slower.
There are two witnesses: ``time``, process CPU time on a CPU and event time on CUDA, and ``wall``; work that no longer
runs in parallel shows in the second alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

WITNESSES = ("time", "wall")
#: Fewer rounds have no median to speak of.
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Side:
    """One arm in one turn, or in one batch.

    Attributes:
        time_s: process CPU time (CPU) or event time (CUDA) of a forward pass.
        wall_s: its wall time.

    Raises:
        ValueError: a time is zero or no number.
    """

    time_s: float
    wall_s: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) and value > 0 for value in (self.time_s, self.wall_s)):
            raise ValueError(f"a time is zero or no number: {self.time_s}, {self.wall_s}")

    def of(self, witness: str) -> float:
        return self.time_s if witness == "time" else self.wall_s


@dataclass(frozen=True)
class Batch:
    """One cell in fresh processes, sampled in turns.

    Attributes:
        base, head: the arms.
        again: the base in a second process, in batches of the screen.
    """

    base: Side
    head: Side
    again: Side | None = None

    def slowdown(self, witness: str) -> float:
        """Return L: the logarithm of head over base; over both of the base's processes where there are two."""
        base = math.log(self.base.of(witness))
        if self.again is not None:
            base = (base + math.log(self.again.of(witness))) / 2
        return math.log(self.head.of(witness)) - base

    def at_worst(self, witness: str) -> float:
        """Return the logarithm of head over the faster of the base's processes."""
        base = self.base.of(witness) if self.again is None else min(self.base.of(witness), self.again.of(witness))
        return math.log(self.head.of(witness) / base)

    def noise(self, witness: str) -> float:
        """Return |ln| of the base over itself."""
        assert self.again is not None
        return abs(math.log(self.again.of(witness) / self.base.of(witness)))


def batch_of(base: Sequence[Side], head: Sequence[Side], *again: Sequence[Side]) -> Batch:
    """Return the batch of the turns of each arm, in the order of the rounds.

    The base is what it was in the median; the others are that, times the median of their ratios to it in each round.

    Raises:
        ValueError: too few rounds, or an arm that is missing from some.
    """
    arms = (base, head, *again)
    counts = {len(turns) for turns in arms}
    if len(counts) != 1 or min(counts) < FEWEST_ROUNDS:
        raise ValueError(f"the arms have {sorted(counts)} turns; equally many are needed, and {FEWEST_ROUNDS} or more")
    middle = {witness: statistics.median(turn.of(witness) for turn in base) for witness in WITNESSES}
    sides = [
        Side(*(middle[w] * math.exp(statistics.median(_apart(base, turns, w))) for w in WITNESSES)) for turns in arms
    ]
    return Batch(*sides)


def uncertainty(base: Sequence[Side], other: Sequence[Side]) -> float:
    """Return the standard error of ln(other / base) over rounds in ``time``, from the median deviation."""
    apart = _apart(base, other, "time")
    middle = statistics.median(apart)
    sigma = statistics.median([abs(value - middle) for value in apart]) / statistics.NormalDist().inv_cdf(0.75)
    return math.sqrt(math.pi / 2 / len(apart)) * sigma


def _apart(base: Sequence[Side], other: Sequence[Side], witness: str) -> list[float]:
    """Return ln(other / base) of each round."""
    return [math.log(b.of(witness) / a.of(witness)) for a, b in zip(base, other, strict=True)]
