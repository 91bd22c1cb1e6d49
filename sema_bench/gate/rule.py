"""The gate's decision, as a function of numbers alone: how and when they were measured plays no part here.

L is the logarithm of head over base in one batch (batch.py), by each of two witnesses. A *look* judges all cells that
are still open, by the mean of L and its error s / √n over the n batches so far:

1. s is the largest of three spreads of L between batches: that of the cell, that of all cells of the gate together, and
   half a percent. Few batches of one cell say little about noise, and those of all cells say more.
2. Convict: the lower bound of L is above ln(1 + δ/2), and the median of L is at least ln(1 + δ), and at least s. The
   bound is Student's, at 5 % for all cells, witnesses and looks together (Bonferroni).
3. Acquit: the upper end of the 95 % interval is below ln(1 + δ).
4. Any other cell is open, and gets more batches until the next look. After the last look it is INCONCLUSIVE.

Noise widens the bounds, so it convicts no one and acquits no one. A conviction never rests on one witness that the
other contradicts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from sema_bench.gate.batch import WITNESSES, Batch

PASS, REGRESSION, INCONCLUSIVE, INCOMPLETE = "PASS", "REGRESSION", "INCONCLUSIVE", "INCOMPLETE"
#: Chance that any cell of a gate is convicted though none is slower by more than δ/2.
ALPHA = 0.05
#: A cell is judged after each of these numbers of batches, until it is convicted or acquitted.
LOOKS = (3, 5, 8, 12, 16)
#: In every recording, processes of the same code differ by more than this: a smaller spread is luck.
_LEAST_SPREAD = 0.005
_LEVEL = 0.975  # of each end of the interval
_POWER = 0.95
_WORDS = {"time": "median time", "wall": "wall time"}


@dataclass(frozen=True)
class Evidence:
    """All batches of one cell, in their order.

    Attributes:
        delta: the slowdown that is not accepted, 0.03 for 3 %.
        parallel: True if work shares several cores or a device: then a slowdown may show only in wall time, so its
            interval, too, must allow an acquittal.
    """

    delta: float
    batches: tuple[Batch, ...] = ()
    parallel: bool = False


@dataclass(frozen=True)
class Judgement:
    """The verdict on one cell, and why.

    Attributes:
        ratio: time of the head over that of the base, by the witness that decided.
        ci_low, ci_high: 95 % interval of the ratio over batches.
        spread: how far batches lie apart (standard deviation), relative.
        visible: smallest slowdown that would be convicted 19 times in 20, at the last look at the latest.
        batches: number of batches behind the ratio.
    """

    verdict: str
    reason: str
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    spread: float | None = None
    visible: float | None = None
    batches: int = 0


@dataclass(frozen=True)
class _Slowdown:
    """L of one cell and witness at one look; ``spread`` has ``freedom`` degrees of freedom."""

    values: Sequence[float]
    spread: float
    freedom: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    def end(self, level: float) -> float:
        """Return the bound that L stays below with the probability ``level``."""
        return self.mean + float(stdtrit(self.freedom, level)) * self.spread / math.sqrt(len(self.values))

    @property
    def low(self) -> float:
        return self.end(1 - _LEVEL)

    @property
    def high(self) -> float:
        return self.end(_LEVEL)

    def convicts(self, delta: float, chance: float) -> bool:
        return self.end(chance) > math.log1p(delta / 2) and statistics.median(self.values) >= self._bar(delta)

    def visible(self, delta: float, chance: float) -> float:
        """Return the smallest slowdown that convicts at the last look with probability ``_POWER``, if L is normal."""
        error = self.spread / math.sqrt(LOOKS[-1])
        luck = statistics.NormalDist().inv_cdf(_POWER) * error
        by_bound = math.log1p(delta / 2) - float(stdtrit(self.freedom, chance)) * error + luck
        return math.expm1(max(by_bound, self._bar(delta) + math.sqrt(math.pi / 2) * luck))

    def _bar(self, delta: float) -> float:
        return max(math.log1p(delta), self.spread)


def judge(cells: Mapping[str, Evidence]) -> dict[str, Judgement]:
    """Judge every cell at each look for which it has enough batches, until it is convicted or acquitted.

    A cell with too few batches for the first look has no judgement. A cell that is still open is INCONCLUSIVE.
    """
    judgements: dict[str, Judgement] = {}
    chance = ALPHA / max(1, len(cells) * len(WITNESSES) * len(LOOKS))
    for look in LOOKS:
        taken = {name: evidence.batches[:look] for name, evidence in cells.items()}
        pools = {witness: _pooled(taken.values(), witness) for witness in WITNESSES}
        for name in still_open(cells, judgements):
            if len(taken[name]) == look:
                slowdowns = {w: _slowdown(taken[name], w, *pools[w]) for w in WITNESSES}
                judgements[name] = _judged(cells[name], slowdowns, chance)
    return judgements


def still_open(names: Iterable[str], judgements: Mapping[str, Judgement]) -> list[str]:
    """List the cells that are neither convicted nor acquitted."""
    return [name for name in names if name not in judgements or judgements[name].verdict == INCONCLUSIVE]


def overall(verdicts: Iterable[str]) -> str:
    """Return the verdict of the gate: the worst of its cells, or INCOMPLETE if there are none."""
    return min(verdicts, key=(REGRESSION, INCOMPLETE, INCONCLUSIVE, PASS).index, default=INCOMPLETE)


def _pooled(cells: Collection[Sequence[Batch]], witness: str) -> tuple[float, int]:
    """Return the spread of L within cells, pooled over all cells, and its degrees of freedom."""
    values = [[batch.slowdown(witness) for batch in batches] for batches in cells if len(batches) > 1]
    freedom = sum(len(each) - 1 for each in values)
    squares = sum(statistics.variance(each) * (len(each) - 1) for each in values)
    return math.sqrt(squares / max(1, freedom)), freedom


def _slowdown(batches: Sequence[Batch], witness: str, pooled: float, freedom: int) -> _Slowdown:
    values = [batch.slowdown(witness) for batch in batches]
    return _Slowdown(values, max(statistics.stdev(values), pooled, _LEAST_SPREAD), freedom)


def _judged(evidence: Evidence, slowdowns: Mapping[str, _Slowdown], chance: float) -> Judgement:
    delta = evidence.delta

    def judgement(witness: str, verdict: str, reason: str = "") -> Judgement:
        slowdown = slowdowns[witness]
        low, middle, high = map(math.exp, (slowdown.low, slowdown.mean, slowdown.high))
        spread, visible = math.expm1(slowdown.spread), slowdown.visible(delta, chance)
        return Judgement(verdict, reason, middle, low, high, spread, visible, len(slowdown.values))

    for witness, other in (WITNESSES, WITNESSES[::-1]):
        if not slowdowns[witness].convicts(delta, chance):
            continue
        if slowdowns[other].mean < -math.log1p(delta / 2):
            what = "more CPU time, yet faster" if witness == "time" else "slower, yet with less CPU time"
            return judgement(witness, INCONCLUSIVE, f"{what}: the witnesses contradict each other")
        reason = f"{math.expm1(slowdowns[witness].mean):.1%} slower ({_WORDS[witness]})"
        return judgement(witness, REGRESSION, reason)
    for witness in WITNESSES:
        slowdown = slowdowns[witness]
        # For work on one core, wall time may object, but need not agree.
        is_needed = evidence.parallel or witness == "time"
        if slowdown.high >= math.log1p(delta) and (is_needed or slowdown.low > 0):
            most = math.expm1(slowdown.high)
            reason = (
                f"perhaps {most:.1%} slower ({_WORDS[witness]}): batches lie {math.expm1(slowdown.spread):.1%} apart"
            )
            return judgement(witness, INCONCLUSIVE, reason)
    return judgement("time", PASS)
