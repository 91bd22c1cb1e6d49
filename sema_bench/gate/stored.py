"""Judge a run by a stored one, although base and head were not measured side by side.

That says much less. The machine changes speed from one hour to the next, and every process keeps the memory that it
happened to get. So a verdict on speed needs the same hardware and software. Speeds are in units of the yardstick if
both runs have one; if it shows that the machine itself changed by more than δ, there is no verdict. And a slowdown
must be larger than the luck of one process explains. Parameters and MACs are exact everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from sema_bench.analysis.comparison import MACHINE_FIELDS, Comparison, Ratio, compare, machine_differences
from sema_bench.analysis.unshared import why_nothing_compares
from sema_bench.errors import UsageError
from sema_bench.gate.inspection import EXACT, LIMITS, Inspection, counts_of
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult, with_counts
from sema_bench.spec.cell import Cell
from sema_bench.spec.suite import GateTable
from sema_bench.statistics import ROUNDS
from sema_bench.store.stored_run import StoredRun

#: The largest slowdown seen that came from the memory a process happened to get (docs/method/time.md), and the change
#: of a machine's speed within an hour: without a yardstick, do not blame code for that much.
_LUCK, _DRIFT = 0.05, 0.3


def judge_stored(base: StoredRun, head: StoredRun, settings: GateTable) -> GateResult:
    """Judge the run ``head`` by the stored run ``base``.

    Raises:
        UsageError: the runs share no timed cell; the message says why.
    """
    differs = machine_difference(base, head)
    comparison = compare(base, head, metric="latency_s", allow=MACHINE_FIELDS)
    why_none = ""
    if not comparison.ratios:
        advice = "gate the suite of the baseline, on the same device"
        why_none = why_nothing_compares(base, head, comparison, advice=advice)
        if not comparison.unmatched_as("broken", "vanished", "unmeasured"):
            raise UsageError(f"{base.name} and {head.name} share no cell that was timed: {why_none}")
    judgements: dict[Cell, Judgement] = {}
    inspections: dict[Cell, Inspection] = {}
    for ratio in comparison.ratios:
        cell = ratio.base.cell
        counts = counts_of(ratio.base.value, ratio.other.value, EXACT if differs else LIMITS)
        inspections[cell] = Inspection(counts)
        if differs:
            judgement = _of_ratio(ratio, INCONCLUSIVE, f"another machine: {differs}")
        else:
            judgement = _judged(ratio, settings.delta_of(cell))
        judgements[cell] = with_counts(judgement, inspections[cell])
    judgements |= _of_lonely_cells(comparison, differs, head.planned)
    return GateResult(
        base=f"stored run {base.name}",
        head=f"run {head.name}",
        settings=settings,
        judgements=judgements,
        inspections=inspections,
        notes=tuple(filter(None, (comparison.estimated_note, why_none if comparison.unmatched_as("vanished") else ""))),
    )


def machine_difference(base: StoredRun, head: StoredRun) -> str:
    """Say how the machines of two runs differ; "" if they do not."""
    return ", ".join([line for part in MACHINE_FIELDS for line in machine_differences(base, head, part)][:4])


def _judged(ratio: Ratio, delta: float) -> Judgement:
    slowdown, bar = -math.log(ratio.value), math.log1p(delta)
    if ratio.ci_low is None or ratio.ci_high is None:
        return _of_ratio(ratio, INCONCLUSIVE, ratio.why_no_interval(other="head"))
    least, most = -math.log(ratio.ci_high), -math.log(ratio.ci_low)
    if ratio.drift is not None and abs(math.log(ratio.drift)) > bar:
        return _of_ratio(ratio, INCONCLUSIVE, f"the machine itself changed its speed, ×{ratio.drift:.2f} (yardstick)")
    if most < bar and slowdown <= math.log1p(delta / 2):
        return _of_ratio(ratio, PASS, "")
    basis = f" (estimated from {ratio.estimated_from})" if ratio.estimated_from else ""
    allowed = math.log1p(_LUCK) + (math.log1p(_DRIFT) if ratio.drift is None else 0.0)
    if least >= bar + allowed:
        reason = f"{math.expm1(slowdown):.1%} slower, at least {math.expm1(least):.1%}{basis}"
        return _of_ratio(ratio, REGRESSION, reason)
    reason = f"its time is between {math.exp(least):.3f} and {math.exp(most):.3f} of the base's{basis}: not decided"
    if least >= bar:
        cause = "the luck of a process" if ratio.drift is not None else "the machine, without a yardstick,"
        reason += f"; {cause} explains {math.expm1(allowed):.0%} more"
    return _of_ratio(ratio, INCONCLUSIVE, f"{reason}; {_advice(ratio)}")


def _advice(ratio: Ratio) -> str:
    """Say how to decide an undecided cell."""
    sides = (ratio.base, ratio.other)
    if not any(side.details.get(ROUNDS) for side in sides):
        return "sema-bench gate run --base REF can tell"
    if all(side.measurements["latency_s"].samples for side in sides):
        return "time more rounds (pytest --benchmark-min-rounds), or use the fixture sema_benchmark"
    return "keep the samples of both with pytest --benchmark-save-data, and time more rounds (--benchmark-min-rounds)"


def _of_ratio(ratio: Ratio, verdict: str, reason: str) -> Judgement:
    low, high = (None if bound is None else 1 / bound for bound in (ratio.ci_high, ratio.ci_low))
    return Judgement(verdict, reason, ratio=1 / ratio.value, ci_low=low, ci_high=high, batches=1)


def _of_lonely_cells(comparison: Comparison, differs: str, planned: Collection[Cell]) -> dict[Cell, Judgement]:
    """Judge the cells without a ratio."""
    judgements: dict[Cell, Judgement] = {}
    for each in comparison.unmatched_as("broken", "unmeasured", "mended", "vanished", "refused", "new"):
        cell, reason = each.cell, each.reason
        if each.verdict == "broken":
            reason = f"it ran, and now: {reason}"
            if differs:
                judgements[cell] = Judgement(INCONCLUSIVE, f"{reason}; another machine: {differs}")
            else:
                judgements[cell] = Judgement(REGRESSION, reason)
        elif each.verdict == "unmeasured" and not reason.startswith("base: skipped"):
            judgements[cell] = Judgement(INCOMPLETE, reason)
        elif each.verdict == "mended":
            judgements[cell] = Judgement(PASS, "new: it did not run in the baseline")
        elif each.verdict == "vanished" and cell in planned:
            judgements[cell] = Judgement(INCOMPLETE, "the head has not measured it yet; finish that run")
        elif each.verdict == "vanished":
            judgements[cell] = Judgement(REGRESSION, "vanished: the head has no such cell")
        elif each.verdict == "refused":
            judgements[cell] = Judgement(INCOMPLETE, f"measured under other conditions: {reason}")
        elif each.verdict == "new":
            judgements[cell] = Judgement(PASS, "new: the baseline has no such cell")
    return judgements
