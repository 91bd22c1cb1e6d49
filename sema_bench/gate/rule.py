"""The gate's decision, as a function of numbers alone: how and when they were measured plays no part here.

L is the logarithm of head over base in one batch (batch.py), by each of two witnesses.

1. Screen: a few batches, with the base in two processes. |ln(base again / base)| is the noise floor, the median over
   batches. A witness is suspected if its median(L) > ln(1 + δ/2).
2. Confirm: fresh batches for what is suspected. A witness convicts if its median(L) ≥ ln(1 + δ) and L > ln(1 + δ/2) in
   so many batches that a sign test says so, at 5 % for all suspects together (Holm). Nine batches allow one exception
   for up to two suspects; more suspects get more batches.
3. What is not convicted is acquitted, unless it still looks slower by more than δ/2, or the floor is above δ/2: then an
   interval over at least six batches that stays below δ acquits it, and without that it is INCONCLUSIVE. A floor above
   δ/2 also sets δ to twice the floor: noise raises the bar, and convicts no one.

A conviction never rests on one witness that the other contradicts.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import betaincinv

from sema_bench.gate.batch import WITNESSES, Batch
from sema_bench.statistics import mean_interval

PASS, REGRESSION, INCONCLUSIVE, INCOMPLETE = "PASS", "REGRESSION", "INCONCLUSIVE", "INCOMPLETE"
#: Chance that any cell of a gate is convicted though none is slower by more than δ/2.
ALPHA = 0.05
SCREEN_BATCHES, CONFIRM_BATCHES = 3, 9
#: A screen whose floor is too high continues until an interval acquits, and to this many at most: the median of few is
#: itself uncertain. To stop where the floor happens to be low would acquit too easily.
MOST_SCREEN_BATCHES = 15
_POWER = 0.95
_WORDS = {"time": "median time", "wall": "wall time"}


@dataclass(frozen=True)
class Evidence:
    """All batches of one cell.

    Attributes:
        delta: the slowdown that is not accepted, 0.03 for 3 %.
        screen: batches with the base twice.
        confirm: fresh batches, taken if the screen suspects something.
        parallel: whether work shares several cores or a device: then wall time may be the one that shows a slowdown,
            and its noise, too, must allow an acquittal.
    """

    delta: float
    screen: tuple[Batch, ...] = ()
    confirm: tuple[Batch, ...] = ()
    parallel: bool = False

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The batches that decide: the fresh ones, if there are any."""
        return self.confirm or self.screen


@dataclass(frozen=True)
class Judgement:
    """The verdict on one cell, and why.

    Attributes:
        ratio: time of the head over that of the base, of the witness that decided.
        ci_low, ci_high: 95 % interval of the ratio over batches; of fewer than six it is Student's, and wide.
        floor: noise floor, relative.
        visible: smallest slowdown that would be seen 19 times in 20.
        batches: how many the ratio is of.
    """

    verdict: str
    reason: str
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    floor: float | None = None
    visible: float | None = None
    batches: int = 0


def floor_of(evidence: Evidence, witness: str) -> float:
    """Return the noise floor of a witness, a logarithm."""
    return statistics.median(abs(batch.between_bases(witness)) for batch in evidence.screen)


def bar_of(evidence: Evidence, witness: str) -> float:
    """Return the δ that counts: the given one, or twice the floor if that is more."""
    return max(evidence.delta, 2 * math.expm1(floor_of(evidence, witness)))


def noisy(evidence: Evidence) -> list[str]:
    """List the witnesses whose floor is above δ/2, so that three batches can acquit no one."""
    return [w for w in _needed(evidence) if floor_of(evidence, w) > math.log1p(evidence.delta / 2)]


def is_screened(evidence: Evidence) -> bool:
    """Check whether a noisy screen acquits by now: nothing is suspected, and the intervals stay below δ."""
    return not suspects(evidence) and all(_is_cleared(evidence, w, evidence.screen) for w in _needed(evidence))


def _needed(evidence: Evidence) -> Sequence[str]:
    """List the witnesses whose noise has to allow an acquittal: of work on one core the first one alone."""
    return WITNESSES if evidence.parallel else WITNESSES[:1]


def suspects(evidence: Evidence) -> tuple[str, ...]:
    """List the witnesses to whom the screen shows a slowdown."""
    return tuple(w for w in WITNESSES if _slowdown(evidence.screen, w) > math.log1p(bar_of(evidence, w) / 2))


def confirm_batches(suspected: int) -> int:
    """Return how many fresh batches allow one exception if ``suspected`` hypotheses are tested together."""
    return next(n for n in itertools.count(CONFIRM_BATCHES) if _sign_test(n - 1, n) <= ALPHA / max(1, suspected))


def judge(cells: Mapping[str, Evidence]) -> dict[str, Judgement]:
    """Judge every cell; the chance of a wrong conviction is that of all together.

    A suspected cell without confirmation is INCOMPLETE.
    """
    hypotheses = [(name, witness) for name, evidence in cells.items() for witness in suspects(evidence)]
    convicted = _holm(
        {(name, w): _sign_p(cells[name], w) for name, w in hypotheses if cells[name].confirm}, len(hypotheses)
    )
    return {name: _judged(evidence, {w for n, w in convicted if n == name}) for name, evidence in cells.items()}


def overall(verdicts: Iterable[str]) -> str:
    """Return the verdict of the gate: the worst of its cells; of no cells at all it is INCOMPLETE."""
    return min(verdicts, key=(REGRESSION, INCOMPLETE, INCONCLUSIVE, PASS).index, default=INCOMPLETE)


def _judged(evidence: Evidence, convicting: set[str]) -> Judgement:
    suspected, accepted = suspects(evidence), math.log1p(evidence.delta / 2)
    if suspected and not evidence.confirm:
        return _judgement(evidence, "time", INCOMPLETE, "suspected, but there was no time to confirm it")
    effects = {w: _slowdown(evidence.batches, w) for w in WITNESSES}
    for witness, other in (WITNESSES, WITNESSES[::-1]):
        if witness not in convicting or effects[witness] < math.log1p(bar_of(evidence, witness)):
            continue
        if effects[other] < -accepted:
            what = "more CPU time, yet faster" if witness == "time" else "slower, yet with less CPU time"
            return _judgement(evidence, witness, INCONCLUSIVE, f"{what}: the witnesses contradict each other")
        reason = f"{math.expm1(effects[witness]):.1%} slower ({_WORDS[witness]})"
        return _judgement(evidence, witness, REGRESSION, reason)
    for witness in noisy(evidence):
        if not _is_cleared(evidence, witness, evidence.batches):
            floor = math.expm1(floor_of(evidence, witness))
            reason = f"the base differs from itself by {floor:.1%} ({_WORDS[witness]}), which is too much to tell"
            return _judgement(evidence, witness, INCONCLUSIVE, reason)
    for witness in suspected:
        if effects[witness] > accepted and not _is_cleared(evidence, witness, evidence.batches):
            reason = f"perhaps {math.expm1(effects[witness]):.1%} slower ({_WORDS[witness]}), but that is not certain"
            return _judgement(evidence, witness, INCONCLUSIVE, reason)
    return _judgement(evidence, "time", PASS, "suspected at first, then cleared" if suspected else "")


def _is_cleared(evidence: Evidence, witness: str, batches: Sequence[Batch]) -> bool:
    """Check whether the interval of the slowdown stays below δ.

    If one of the base's two processes is slower for certain, something slows it, and the other one counts.
    """
    low, high = _rank_interval([batch.between_bases(witness) for batch in batches if batch.again is not None])
    is_one_sided = low is not None and high is not None and not low <= 0 <= high
    _, most = _rank_interval([b.at_worst(witness) if is_one_sided else b.slowdown(witness) for b in batches])
    return most is not None and most < math.log1p(evidence.delta)


def _judgement(evidence: Evidence, witness: str, verdict: str, reason: str) -> Judgement:
    slowdowns = [batch.slowdown(witness) for batch in evidence.batches]
    low, high = _rank_interval(slowdowns)
    if low is None:  # too few batches for an interval of the median
        _, low, high = mean_interval(slowdowns)
    return Judgement(
        verdict=verdict,
        reason=reason,
        ratio=math.exp(statistics.median(slowdowns)),
        ci_low=None if low is None else math.exp(low),
        ci_high=None if high is None else math.exp(high),
        floor=math.expm1(floor_of(evidence, witness)),
        visible=visible_slowdown(evidence, witness),
        batches=len(slowdowns),
    )


def visible_slowdown(evidence: Evidence, witness: str = "time") -> float:
    """Return the smallest slowdown that nine batches would convict 19 times in 20, given the noise of the screen.

    The spread of a batch is taken to be normal, with the floor as its median deviation.
    """
    normal = statistics.NormalDist()
    sigma = floor_of(evidence, witness) / normal.inv_cdf(0.75)
    bar = bar_of(evidence, witness)
    by_median = math.log1p(bar) + normal.inv_cdf(_POWER) * math.sqrt(math.pi / 2 / CONFIRM_BATCHES) * sigma
    chance = float(betaincinv(CONFIRM_BATCHES - 1, 2, _POWER))  # of one batch, so that all but one of nine exceed
    by_sign = math.log1p(bar / 2) + normal.inv_cdf(chance) * sigma
    return math.expm1(max(by_median, by_sign))


def _slowdown(batches: Sequence[Batch], witness: str) -> float:
    return statistics.median(batch.slowdown(witness) for batch in batches)


def _sign_p(evidence: Evidence, witness: str) -> float:
    threshold = math.log1p(bar_of(evidence, witness) / 2)
    above = sum(batch.slowdown(witness) > threshold for batch in evidence.confirm)
    return _sign_test(above, len(evidence.confirm))


def _sign_test(above: int, count: int) -> float:
    """Return the chance of ``above`` or more of ``count`` fair coins."""
    return sum(math.comb(count, k) for k in range(above, count + 1)) / (1 << count)


def _holm(p_values: Mapping[tuple[str, str], float], count: int) -> set[tuple[str, str]]:
    """Return the hypotheses that Holm's step-down procedure rejects, of ``count`` that were tested."""
    rejected: set[tuple[str, str]] = set()
    for rank, hypothesis in enumerate(sorted(p_values, key=p_values.__getitem__)):
        if p_values[hypothesis] > ALPHA / (count - rank):
            break
        rejected.add(hypothesis)
    return rejected


def _rank_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the narrowest pair of values that holds the median with 95 % or more; None of too few."""
    ordered, count = sorted(values), len(values)
    for rank in range(count // 2, 0, -1):
        if 1 - 2 * _sign_test(count - rank + 1, count) >= 0.95:
            return ordered[rank - 1], ordered[count - rank]
    return None, None
