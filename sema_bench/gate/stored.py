"""A run against one that was stored: what can be said where base and head were not measured side by side.

Much less. The machine changes speed from one hour to the next, and every process keeps for its life the memory it
happened to get. So a verdict on speed needs the same hardware and software; speeds are taken in units of the yardstick
where both runs have one, and where that says the machine itself was faster or slower by more than δ, nothing is said;
and a slowdown must be larger than what the luck of one process explains. Parameters and MACs are exact everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping

from sema_bench.analysis.comparison import MACHINE_FIELDS, Comparison, Ratio, compare
from sema_bench.analysis.unshared import why_nothing_compares
from sema_bench.errors import UsageError
from sema_bench.gate.inspection import EXACT, LIMITS, Count, Inspection
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult, GateSettings, with_counts
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.statistics import ROUNDS
from sema_bench.store.loaded_run import LoadedRun

#: What the memory that a process happens to get makes it slower, at most that was seen (docs/measuring.md), and what
#: a machine of this kind changes its speed by within an hour: that much is believed of no code without a yardstick.
_LUCK, _DRIFT = 0.05, 0.3


def judge_stored(base: LoadedRun, head: LoadedRun, settings: GateSettings) -> GateResult:
    """Judge the run ``head`` by the stored run ``base``.

    Raises:
        UsageError: no cell of both was timed; the message says why.
    """
    started = time.monotonic()
    differs = machine_difference(base, head)
    found = compare(base, head, metric="latency_s", allow=MACHINE_FIELDS)
    if not any((found.ratios, found.broken, found.vanished, found.unmeasured)):
        why = why_nothing_compares(base, head, found, advice="gate the suite of the baseline, on the same device")
        raise UsageError(f"{base.name} and {head.name} share no cell that was timed: {why}")
    judgements: dict[Cell, Judgement] = {}
    inspections: dict[Cell, Inspection] = {}
    for ratio in found.ratios:
        cell = ratio.base.cell
        inspections[cell] = _counted(ratio.base, ratio.other, EXACT if differs else LIMITS)
        if differs:
            judgement = _of(ratio, INCONCLUSIVE, f"another machine: {differs}")
        else:
            judgement = _judged(ratio, settings.delta_of(cell))
        judgements[cell] = with_counts(judgement, inspections[cell])
    judgements |= _of_what_is_not_in_both(found, differs, head.planned)
    return GateResult(
        base=f"stored run {base.name}",
        head=f"run {head.name}",
        settings=settings,
        judgements=judgements,
        inspections=inspections,
        evidence={},
        failures={},
        took_s=time.monotonic() - started,
        out_of_time=False,
        notes=tuple(_notes(base, head, found)),
    )


def _notes(base: LoadedRun, head: LoadedRun, found: Comparison) -> Iterator[str]:
    """Yield what concerns the gate as a whole."""
    if found.estimated_note:
        yield found.estimated_note
    if found.vanished and not found.ratios:
        yield why_nothing_compares(base, head, found, advice="gate the suite of the baseline, on the same device")


def machine_difference(base: LoadedRun, head: LoadedRun) -> str:
    """Return in words how the machines of two runs differ; empty where they do not."""
    told = []
    for name in MACHINE_FIELDS:
        one: Mapping[str, object] = getattr(base, name)
        other: Mapping[str, object] = getattr(head, name)
        told += [f"{run.name} does not say its {name}" for run, known in ((base, one), (head, other)) if not known]
        told += [
            f"{key} {one.get(key)} | {other.get(key)}" for key in {**one, **other} if one.get(key) != other.get(key)
        ]
    return ", ".join(told[:4])


def _judged(ratio: Ratio, delta: float) -> Judgement:
    slowdown, bar = -math.log(ratio.value), math.log1p(delta)
    if ratio.ci_low is None or ratio.ci_high is None:
        return _of(ratio, INCONCLUSIVE, ratio.why_no_interval(other="head"))
    least, most = -math.log(ratio.ci_high), -math.log(ratio.ci_low)
    if ratio.drift is not None and abs(math.log(ratio.drift)) > bar:
        return _of(ratio, INCONCLUSIVE, f"the machine itself changed its speed, ×{ratio.drift:.2f} (yardstick)")
    if most < bar and slowdown <= math.log1p(delta / 2):
        return _of(ratio, PASS, "")
    basis = f" (estimated from {ratio.estimated_from})" if ratio.estimated_from else ""
    allowed = math.log1p(_LUCK) + (math.log1p(_DRIFT) if ratio.drift is None else 0.0)
    if least >= bar + allowed:
        return _of(ratio, REGRESSION, f"{math.expm1(slowdown):.1%} slower, at least {math.expm1(least):.1%}{basis}")
    told = f"its time is between {math.exp(least):.3f} and {math.exp(most):.3f} of the base's{basis}: not decided"
    advice = _advice(ratio)
    if least >= bar:
        cause = "the luck of a process" if ratio.drift is not None else "the machine, without a yardstick,"
        advice = f"{cause} explains {math.expm1(allowed):.0%} more; {advice}"
    return _of(ratio, INCONCLUSIVE, f"{told}; {advice}")


def _advice(ratio: Ratio) -> str:
    """Return what would decide a cell that is not decided."""
    sides = (ratio.base, ratio.other)
    if not any(side.details.get(ROUNDS) for side in sides):
        return "gate --base REF would tell"
    if all(side.measurements["latency_s"].samples for side in sides):
        return "time more rounds (pytest --benchmark-min-rounds), or use the fixture sema_benchmark"
    return "keep the samples of both with pytest --benchmark-save-data, and time more rounds (--benchmark-min-rounds)"


def _of(ratio: Ratio, verdict: str, reason: str) -> Judgement:
    low, high = (None if bound is None else 1 / bound for bound in (ratio.ci_high, ratio.ci_low))
    return Judgement(verdict, reason, ratio=1 / ratio.value, ci_low=low, ci_high=high, batches=1)


def _of_what_is_not_in_both(found: Comparison, differs: str, planned: Collection[Cell]) -> dict[Cell, Judgement]:
    judgements: dict[Cell, Judgement] = {}
    for base, head in found.broken:
        reason = f"it ran, and now: {head.status}: {head.reason}"
        if differs:
            judgements[base.cell] = Judgement(INCONCLUSIVE, f"{reason}; another machine: {differs}")
        else:
            judgements[base.cell] = Judgement(REGRESSION, reason)
    for cell, why in found.unmeasured:
        if not why.startswith("base: skipped"):
            judgements[cell] = Judgement(INCOMPLETE, why)
    for base, _ in found.mended:
        judgements[base.cell] = Judgement(PASS, "new: it did not run in the baseline")
    for cell in found.vanished:
        if cell in planned:
            judgements[cell] = Judgement(INCOMPLETE, "the head has not measured it yet; finish that run")
        else:
            judgements[cell] = Judgement(REGRESSION, "vanished: the head has no such cell")
    for refused in found.refused:
        judgements[refused.cell] = Judgement(INCOMPLETE, f"measured under other conditions: {refused.text}")
    for cell in found.new:
        judgements[cell] = Judgement(PASS, "new: the baseline has no such cell")
    return judgements


def _counted(base: Record, head: Record, names: Iterable[str]) -> Inspection:
    pairs = [(name, base.value(name), head.value(name)) for name in names]
    return Inspection(
        tuple(Count(name, one, other) for name, one, other in pairs if one is not None and other is not None)
    )
