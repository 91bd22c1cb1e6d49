"""A run against one that was stored: what can be said where base and head were not measured side by side.

Much less. The machine changes speed from one hour to the next, and every process keeps for its life the memory it
happened to get. So a verdict on speed needs the same hardware and software; speeds are taken in units of the yardstick
where both runs have one, and where that says the machine itself was faster or slower by more than δ, nothing is said;
and a slowdown must be larger than what the luck of one process explains. Parameters and MACs are exact everywhere.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Mapping

from sema_bench.analysis.comparison import MACHINE_FIELDS, Comparison, Ratio, compare
from sema_bench.errors import UsageError
from sema_bench.gate.inspection import EXACT, LIMITS, Count, Inspection
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult, GateSettings, with_counts
from sema_bench.loaded_run import LoadedRun
from sema_bench.schema import Cell, Record

#: What the memory that a process happens to get makes it slower, at most that was seen (docs/measuring.md), and what
#: a machine of this kind changes its speed by within an hour: that much is believed of no code without a yardstick.
_LUCK, _DRIFT = 0.05, 0.3


def judge_stored(base: LoadedRun, head: LoadedRun, settings: GateSettings) -> GateResult:
    """Judge the run ``head`` by the stored run ``base``.

    Raises:
        UsageError: no cell of the base was timed.
    """
    started = time.monotonic()
    differs = machine_difference(base, head)
    found = compare(base, head, metric="latency_s", allow=MACHINE_FIELDS)
    if not any((found.ratios, found.broken, found.vanished, found.unmeasured)):
        raise UsageError(f"{base.name} and {head.name} share no cell that was timed; gate the suite of the baseline")
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
    )


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
        return _of(ratio, INCONCLUSIVE, "too few samples for an interval")
    least, most = -math.log(ratio.ci_high), -math.log(ratio.ci_low)
    if ratio.drift is not None and abs(math.log(ratio.drift)) > bar:
        return _of(ratio, INCONCLUSIVE, f"the machine itself changed its speed, ×{ratio.drift:.2f} (yardstick)")
    if most < bar and slowdown <= math.log1p(delta / 2):
        return _of(ratio, PASS, "")
    if least >= bar + math.log1p(_LUCK) + (math.log1p(_DRIFT) if ratio.drift is None else 0.0):
        return _of(ratio, REGRESSION, f"{math.expm1(slowdown):.1%} slower, at least {math.expm1(least):.1%}")
    told = f"its time is between {math.exp(least):.3f} and {math.exp(most):.3f} of the base's: not decided"
    return _of(ratio, INCONCLUSIVE, f"{told}; gate --base REF would tell")


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
