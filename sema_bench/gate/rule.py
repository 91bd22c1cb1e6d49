"""The gate's decision, as a function of numbers alone: what was measured, when, and by whom plays no part here.

L is the logarithm of head over base in one batch (batch.py), by each of two witnesses.

1. Screen: a few batches, with the base in two processes of its own. |ln(base again / base)| is the noise floor, the
   median over batches. A witness is suspected if its median(L) > ln(1 + δ/2).
2. Confirm: fresh batches for what is suspected. A witness convicts if its median(L) ≥ ln(1 + δ) and L > ln(1 + δ/2) in
   so many batches that a sign test says so, at 5 % for all suspects together (Holm). Nine batches allow one exception
   for up to two suspects; more suspects get more batches.
3. What is not convicted is acquitted, unless it still looks slower by more than δ/2, or the floor is above δ/2: then an
   interval over at least six batches that stays below δ acquits it, and without that it is INCONCLUSIVE. A floor above
   δ/2 also sets δ to twice the floor: noise raises the bar, and convicts no one.

A conviction never rests on one witness that the other contradicts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sema_bench.gate.batch import WITNESSES, Batch
from sema_bench.statistics import student_t

PASS, REGRESSION, INCONCLUSIVE, INCOMPLETE = "PASS", "REGRESSION", "INCONCLUSIVE", "INCOMPLETE"
#: Chance that any cell of a gate is convicted though none is slower by more than δ/2.
ALPHA = 0.05
SCREEN_BATCHES, CONFIRM_BATCHES = 3, 9
#: A screen whose floor is too high goes on until an interval acquits, and to this many at most: the median of few is
#: itself uncertain. To stop where the floor happens to be low would acquit too easily.
MOST_SCREEN_BATCHES = 15
_POWER = 0.95


@dataclass(frozen=True)
class Evidence:
    """All batches of one cell.

    Attributes:
        delta: the slowdown that is not accepted, 0.03 for 3 %.
        screen: batches with the base twice.
        confirm: fresh batches, taken where the screen suspects something.
        parallel: whether work shares several cores or a device of its own: wall time can then be the one that tells,
            and its noise, too, must allow an acquittal.
    """

    delta: float
    screen: tuple[Batch, ...]
    confirm: tuple[Batch, ...] = ()
    parallel: bool = False


@dataclass(frozen=True)
class Judgement:
    """What became of one cell.

    Attributes:
        verdict: PASS, REGRESSION, INCONCLUSIVE or INCOMPLETE.
        reason: in words.
        ratio: time of the head over that of the base, of the witness that decided.
        ci_low, ci_high: 95 % interval of the ratio over batches; of fewer than six it is Student's, and wide.
        floor: noise floor, relative.
        visible: smallest slowdown that would have been found 19 times in 20.
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
    return statistics.median(batch.noise(witness) for batch in evidence.screen)


def bar_of(evidence: Evidence, witness: str) -> float:
    """Return the δ that counts: the one asked for, or twice the floor where that is more."""
    return max(evidence.delta, 2 * math.expm1(floor_of(evidence, witness)))


def is_noisy(evidence: Evidence) -> bool:
    """Tell whether a floor is above δ/2, so that three batches can acquit no one."""
    return bool(_noisy(evidence))


def is_screened(evidence: Evidence) -> bool:
    """Tell whether a noisy screen acquits by now: nothing is suspected, and the intervals stay below δ."""
    return not suspects(evidence) and all(_is_cleared(evidence, w, evidence.screen) for w in _needed(evidence))


def _noisy(evidence: Evidence) -> list[str]:
    """Return the witnesses whose floor is above δ/2."""
    return [w for w in _needed(evidence) if floor_of(evidence, w) > math.log1p(evidence.delta / 2)]


def _needed(evidence: Evidence) -> Sequence[str]:
    """Return the witnesses whose noise has to allow an acquittal: of work on one core the first one alone."""
    return WITNESSES if evidence.parallel else WITNESSES[:1]


def suspects(evidence: Evidence) -> tuple[str, ...]:
    """Return the witnesses to whom the screen shows a slowdown."""
    return tuple(
        witness
        for witness in WITNESSES
        if _median([b.slowdown(witness) for b in evidence.screen]) > math.log1p(bar_of(evidence, witness) / 2)
    )


def confirm_batches(suspected: int) -> int:
    """Return how many fresh batches allow one exception when ``suspected`` hypotheses are tested together."""
    count = CONFIRM_BATCHES
    while _sign_test(count - 1, count) > ALPHA / max(1, suspected):
        count += 1
    return count


def judge(cells: Mapping[str, Evidence]) -> dict[str, Judgement]:
    """Return what becomes of every cell; the chance of a wrong conviction is that of all together.

    A suspected cell without confirmation is INCOMPLETE.
    """
    hypotheses = [(name, witness) for name, evidence in cells.items() for witness in suspects(evidence)]
    convicted = _holm(
        {(name, w): _sign_p(cells[name], w) for name, w in hypotheses if cells[name].confirm}, len(hypotheses)
    )
    return {name: _judged(evidence, {w for n, w in convicted if n == name}) for name, evidence in cells.items()}


def overall(verdicts: Sequence[str]) -> str:
    """Return the verdict of the gate: the worst of its cells; of no cells at all it is INCOMPLETE."""
    order = (REGRESSION, INCOMPLETE, INCONCLUSIVE, PASS)
    return next((verdict for verdict in order if verdict in verdicts), INCOMPLETE)


def _judged(evidence: Evidence, convicting: set[str]) -> Judgement:
    suspected = suspects(evidence)
    batches = evidence.confirm or evidence.screen
    if suspected and not evidence.confirm:
        return _told(evidence, "time", evidence.screen, INCOMPLETE, "suspected, and there was no time to confirm it")
    for witness in [w for w in WITNESSES if w in convicting]:
        other = WITNESSES[1 - WITNESSES.index(witness)]
        effect = _median([batch.slowdown(witness) for batch in batches])
        if effect < math.log1p(bar_of(evidence, witness)):
            continue
        if _median([batch.slowdown(other) for batch in batches]) < -math.log1p(evidence.delta / 2):
            what = "more CPU time, and yet faster" if witness == "time" else "slower, and yet with less CPU time"
            return _told(evidence, witness, batches, INCONCLUSIVE, f"{what}: the witnesses contradict each other")
        return _told(evidence, witness, batches, REGRESSION, f"{math.expm1(effect):.1%} slower ({_WORDS[witness]})")
    for witness in _noisy(evidence):
        if not _is_cleared(evidence, witness, batches):
            floor = math.expm1(floor_of(evidence, witness))
            reason = f"the base differs from itself by {floor:.1%} ({_WORDS[witness]}), and that is too much to tell"
            return _told(evidence, witness, batches, INCONCLUSIVE, reason)
    for witness in suspected:
        effect = _median([batch.slowdown(witness) for batch in batches])
        if effect > math.log1p(evidence.delta / 2) and not _is_cleared(evidence, witness, batches):
            reason = f"perhaps {math.expm1(effect):.1%} slower ({_WORDS[witness]}), but not for certain"
            return _told(evidence, witness, batches, INCONCLUSIVE, reason)
    return _told(evidence, "time", batches, PASS, "suspected at first, and cleared" if suspected else "")


def _is_cleared(evidence: Evidence, witness: str, batches: Sequence[Batch]) -> bool:
    """Tell whether the interval of the slowdown stays below δ.

    Where one of the base's two processes is slower for certain, something slows it, and the other one is what counts.
    """
    apart = sorted(math.log(b.again.of(witness) / b.base.of(witness)) for b in batches if b.again is not None)
    low, high = _rank_interval(apart)
    is_one_sided = low is not None and high is not None and not low <= 0 <= high
    slowdowns = [batch.at_worst(witness) if is_one_sided else batch.slowdown(witness) for batch in batches]
    most = _rank_interval(sorted(slowdowns))[1]
    return most is not None and most < math.log1p(evidence.delta)


_WORDS = {"time": "median time", "wall": "wall time"}


def _told(evidence: Evidence, witness: str, batches: Sequence[Batch], verdict: str, reason: str) -> Judgement:
    slowdowns = sorted(batch.slowdown(witness) for batch in batches)
    low, high = _interval(slowdowns)
    return Judgement(
        verdict=verdict,
        reason=reason,
        ratio=math.exp(_median(slowdowns)),
        ci_low=None if low is None else math.exp(low),
        ci_high=None if high is None else math.exp(high),
        floor=math.expm1(floor_of(evidence, witness)),
        visible=visible_slowdown(evidence, witness),
        batches=len(batches),
    )


def visible_slowdown(evidence: Evidence, witness: str = "time") -> float:
    """Return the smallest slowdown that nine batches would convict 19 times in 20, given the noise of the screen.

    The spread of a batch is taken to be normal, with the floor as its median deviation.
    """
    normal = statistics.NormalDist()
    sigma = floor_of(evidence, witness) / normal.inv_cdf(0.75)
    bar = bar_of(evidence, witness)
    by_median = math.log1p(bar) + normal.inv_cdf(_POWER) * math.sqrt(math.pi / 2 / CONFIRM_BATCHES) * sigma
    low, high = 0.5, 1.0
    chance = 0.0
    for _ in range(40):  # chance of one batch, so that all but one of nine exceed
        middle = (low + high) / 2
        rest = math.pow(middle, CONFIRM_BATCHES - 1)
        chance = rest * middle + CONFIRM_BATCHES * rest * (1 - middle)
        low, high = (low, middle) if chance > _POWER else (middle, high)
    by_sign = math.log1p(bar / 2) + normal.inv_cdf(high) * sigma
    return math.expm1(max(by_median, by_sign))


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
    for rank, (hypothesis, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > ALPHA / (count - rank):
            break
        rejected.add(hypothesis)
    return rejected


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _interval(ordered: Sequence[float]) -> tuple[float | None, float | None]:
    """Return a 95 % interval: of the median by ranks, or of the mean by Student's t where batches are too few."""
    low, high = _rank_interval(ordered)
    if low is not None or len(ordered) < 2:
        return low, high
    half = student_t(len(ordered) - 1, 0.95) * statistics.stdev(ordered) / math.sqrt(len(ordered))
    return statistics.fmean(ordered) - half, statistics.fmean(ordered) + half


def _rank_interval(ordered: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the narrowest pair of ordered values that holds the median with 95 % or more, None of too few."""
    count = len(ordered)
    for rank in range(count // 2, 0, -1):
        if 1 - 2 * _sign_test(count - rank + 1, count) >= 0.95:
            return ordered[rank - 1], ordered[count - rank]
    return None, None
