"""Sum up a run in sentences based on intervals: best models at each size, crossings, failures, growth of cost."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sema_bench.analysis.conditions import by_conditions, by_model, resolutions_of
from sema_bench.analysis.corruption import uncorrupted
from sema_bench.analysis.crossover import Crossing, compare_conditions
from sema_bench.analysis.pooled import pool_weights, seeds_of
from sema_bench.analysis.ranking import are_level, leaders, unranked
from sema_bench.analysis.scaling import Scaling, analyse
from sema_bench.report.columns import exponent
from sema_bench.spec.metrics import ACCURACIES
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.units import counted, duration, listed
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import is_launch_bound, stayed_disturbed
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import mapping
from sema_bench.worker.probes.throughput import is_known

#: Metric → the word for its best models.
_FIRST = {
    "latency_s": "Fastest",
    "throughput_images_per_s": "Fastest",
    "top1": "Most accurate (top-1)",
    "miou": "Best (mIoU)",
    "peak_memory_bytes": "Smallest in peak memory",
    "macs": "Lightest in MACs",
}
#: Metrics of the compact table → the word for the best of a column.
ANSWERED = {"latency_s": "fastest", "throughput_images_per_s": "fastest", "top1": "best", "miou": "best"}
#: What a run is about if nothing was timed or tested, best first.
_STATED = ("peak_memory_bytes", "predicted_peak_bytes", "macs", "params")
#: Statuses that another try may change, and the sizes skipped because of them; memory would run out again.
_RETRIED = ("timeout", "crashed", "error")
#: Models, crossings and reasons that a sentence names.
_NAMED = 3
_REASON_LETTERS = 200


def headlines(group: Sequence[Record]) -> list[str]:
    """Return the metrics to show first: speed and accuracy, or else the best one measured."""
    speed = "throughput_images_per_s" if group[0].cell.batch_policy == "max" else "latency_s"
    measured = {metric for record in group for metric in record.measurements if record.result(metric)}
    best = next((metric for metric in _STATED if metric in measured), speed)
    return [metric for metric in (speed, *ACCURACIES) if metric in measured] or [best]


def findings(group: Sequence[Record], scaling: Scaling) -> Iterator[str]:
    """Yield the sentences below the compact table: the best models, crossings, cells without result."""
    for metric in headlines(group):
        if metric in _FIRST:
            yield from _first(group, metric)
    if crossings := [crossing for pair in scaling.crossovers for crossing in pair.crossings]:
        yield _crossing(crossings)
    if sentence := failures(group):
        yield sentence
    if alone := [record for size in resolutions_of(group) for record in _apart(group, size)]:
        yield (
            "Not sampled in turns with the others of the same size, so drift of the machine is in the comparison: "
            f"{some(_cells(alone), '; ')}."
        )
    if 2 * (disturbed := sum(map(stayed_disturbed, group))) > len(group):
        yield f"{disturbed} of {len(group)} cells were disturbed by other processes; measure again on a quiet machine."


def summary_of(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return all sentences for each set of conditions, in the order of the records, then how the sets differ."""
    groups = by_conditions(pool_weights(uncorrupted(records)))
    summaries = [(conditions.text, list(_sentences(group))) for conditions, group in groups.items()]
    return [*summaries, *compare_conditions(groups)]


def _sentences(group: Sequence[Record]) -> Iterator[str]:
    scaling = analyse(group).readable
    yield from findings(group, scaling)
    for metric in _FIRST:
        if metric not in (*headlines(group), *ANSWERED):
            yield from _first(group, metric)
    yield from _growth(group, scaling)
    if all(record.status == "ok" for record in group):
        yield f"All {len(group)} cells gave a result."
    if (seeds := max(map(seeds_of, group))) > 1:
        yield f"Each is the mean of {seeds} trainings, with Student's 95% interval over them."
    if 0 < 2 * (shaky := sum(map(stayed_disturbed, group))) <= len(group):
        yield f"{shaky} of {len(group)} cells (!) were disturbed in more than half of their sample windows."
    if bound := sum(map(is_launch_bound, group)):
        yield (
            f"{bound} of {len(group)} cells (~) were bound by kernel launches, not by their work; compare them with "
            "--mode cuda-graphs or a larger --batch."
        )


def _first(group: Sequence[Record], metric: str) -> Iterator[str]:
    """Name the best models at each size, as far as intervals show them, and the cells that are not ranked."""
    at: list[tuple[str, str]] = []
    bare: list[Record] = []
    for size in resolutions_of(group):
        cells = [record for record in group if record.cell.resolution == size]
        measured = sum(record.result(metric) is not None for record in cells)
        if measured < 2:
            continue
        best = leaders(cells, metric)
        models = [record.cell.model for record in cells if record in best]
        without = unranked(cells, metric) if models else []
        bare += without
        if not models:  # intervals overlap, or are missing
            names = "no clear winner" if metric in ANSWERED else "all equal"
        elif not are_level(best, metric):  # they overlap only the first, whose interval is wide
            others = [model for model in models if model != best[0].cell.model]
            level = listed(others) if len(others) < _NAMED else f"{len(others)} others"
            names = f"{best[0].cell.model} (level with {level})"
        else:
            names = listed(models) if len(models) <= _NAMED else f"{len(models)} of {measured - len(without)} models"
            names += f" ({'level' if metric in ANSWERED else 'equal'})" if len(models) > 1 else ""
        at.append((names, size.label))
    runs = [(names, [label for _, label in each]) for names, each in itertools.groupby(at, lambda x: x[0])]
    if not runs:
        return
    parts = [f"{names} at {listed(sides) if len(sides) < 3 else f'{sides[0]} to {sides[-1]}'}" for names, sides in runs]
    if len(runs) == 1 and len(at) > 2:
        parts = [f"{runs[0][0]} at every size"]
    lost = _cells([record for record in group if record.status != "ok" and not record.result(metric)])
    left_out = f" Not ranked, without result: {some(lost)}." if lost and metric not in ANSWERED else ""
    if bare:
        left_out += f" Not ranked, without interval: {some(_cells(bare), '; ')}."
    yield f"{_FIRST[metric]}: {'; '.join(parts)}.{left_out}"


def _apart(group: Sequence[Record], size: Resolution) -> list[Record]:
    """Return the timed cells of ``size`` sampled apart from most others: after a resume, or to save memory."""
    sampled: dict[frozenset[str], list[Record]] = {}
    for record in group if group[0].cell.batch_policy == "fixed" else ():  # one that fills the memory is always alone
        others = record.details.get("interleaved_with")
        if record.cell.resolution == size and record.result("latency_s") and isinstance(others, list):
            sampled.setdefault(frozenset(map(str, [record.cell.model, *others])), []).append(record)
    together = max(sampled.values(), key=len, default=[])
    return [record for cells in sampled.values() if cells is not together for record in cells]


def _crossing(crossings: Sequence[Crossing]) -> str:
    """Say which models fall behind which others, the most often overtaken first."""
    overtaken: dict[str, dict[str, list[str]]] = {}
    for crossing in crossings:
        overtaken.setdefault(crossing.faster_below, {}).setdefault(crossing.where, []).append(crossing.faster_above)
    ranked = sorted(overtaken.items(), key=lambda pair: -sum(map(len, pair[1].values())))
    parts = [
        f"{model} is slower than {some([f'{some(others)} {where}' for where, others in places.items()], '; ')}"
        for model, places in ranked[:2]
    ]
    if left := sum(len(others) for _, places in ranked[2:] for others in places.values()):
        parts.append(f"Further crossings: {left}, in crossovers.csv")
    return f"{'. '.join(parts)}."


def failures(records: Sequence[Record]) -> str:
    """Name the cells without a result, by status and reason; "" if all have one."""
    reasons: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        reason = " ".join(record.reason.split()) if record.status in ("crashed", "error") else ""
        if record.status != "ok":
            reasons.setdefault((record.status, reason), []).append(record)
    if not reasons:
        return ""
    parts = []
    for (status, reason), group in reasons.items():
        short = reason if len(reason) <= _REASON_LETTERS else f"{reason[:_REASON_LETTERS]}…"
        parts.append(f"{some(_cells(group), '; ')} ({status}{f': {short}' if short else ''})")
    count = sum(map(len, reasons.values()))
    if count == len(records):
        counts = " Figures above are counts alone." if any(record.measurements for record in records) else ""
        return f"No cell gave a result: {some(parts, '; ')}.{counts}"
    return f"{count} of {len(records)} cells gave no result: {some(parts, '; ')}."


def _cells(records: Sequence[Record]) -> list[str]:
    """Return ``model at 896 and 1024`` for each model."""
    curves = by_model(records)
    return [f"{model} at {listed([r.cell.resolution.label for r in curve])}" for model, curve in curves.items()]


def retry_hint(records: Sequence[Record], command: str) -> str:
    """Say how to measure unfinished cells again; "" if another try changes nothing."""
    if not any(record.status in _RETRIED for record in records):
        return ""
    count = sum(record.status != "ok" for record in records)
    return f"measure the {counted(count, 'cell')} without a result again: {command}"


def unfinished(run: StoredRun) -> str:
    """Say how many cells of its plan a run lacks; "" if it has all."""
    if not run.missing:
        return ""
    verb = "is" if run.missing == 1 else "are"
    return f"{run.missing} of {counted(len(run.planned), 'cell')} {verb} not measured yet"


def sampling_facts(
    records: Sequence[Record], new: Sequence[Record], *, wall_s: float, limits: Sampling, earlier: object = None
) -> dict[str, Any]:
    """Sum up how a run was sampled, for its run.json.

    Args:
        records: records of the whole run.
        new: records that ``wall_s`` of wall time added.
        limits: when a ratio counts as known, and the time of a cell.
        earlier: the facts so far, if the run is resumed.
    """
    before = mapping(earlier)
    sampled_s = _number(before, "sampled_s") + sum(record.sampled_s for record in new)
    wall_s += _number(before, "wall_s")
    ratios = [ratio for record in records if (ratio := record.result("paired_ratio"))]
    known = sum(is_known(ratio, limits.precision) for ratio in ratios)
    return {
        "wall_s": round(wall_s, 3),
        "sampled_s": round(sampled_s, 3),
        "share": round(sampled_s / wall_s, 3) if wall_s else 0.0,
        "stop_reasons": dict(Counter(str(r.details["stop_reason"]) for r in records if "stop_reason" in r.details)),
        "ratios": len(ratios),
        "ratios_known": known,
        "precision": limits.precision,
        "time_limit_s": limits.time_limit_s,
    }


def sampling_sentence(facts: Mapping[str, Any]) -> str:
    """Say what would narrow the intervals, and which share of a run's time was sampled; "" if nothing was timed."""
    stops, wall_s = mapping(facts.get("stop_reasons")), _number(facts, "wall_s")
    if not stops or not wall_s:
        return ""
    sentences = []
    if late := _number(stops, "time limit"):
        limit = _number(facts, "time_limit_s")
        more = f"--time-limit {2 * limit:g}" if limit else "a longer --time-limit"
        total = counted(sum(int(_number(stops, reason)) for reason in stops), "cell")
        sentences.append(f"{late:.0f} of {total} stopped at the time limit; for narrower intervals: {more}.")
    if ratios := _number(facts, "ratios"):
        known, precision = _number(facts, "ratios_known"), _number(facts, "precision")
        verb = "is" if known == 1 else "are"
        sentences.append(f"{known:.0f} of {ratios:.0f} ratios to the first model {verb} known to ±{precision:.1%}.")
    share = _number(facts, "sampled_s") / wall_s
    return printable(" ".join([*sentences, f"Timed samples took {share:.0%} of {duration(wall_s)}."]))


def _number(facts: Mapping[str, Any], name: str) -> float:
    value = facts.get(name)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else 0.0


def drift_of(group: Sequence[Record]) -> float:
    """Return how much longer the yardstick took at one size than at another, as a share; 0 without a yardstick."""
    speeds = [value for record in group if (value := record.value("yardstick_s"))]
    return max(speeds) / min(speeds) - 1 if speeds else 0.0


def _growth(group: Sequence[Record], scaling: Scaling) -> Iterator[str]:
    of_latency = [fit for fit in scaling.fits if fit.metric == "latency_s"]
    if known := [fit for fit in of_latency if fit.exponent]:
        parts = []
        for fit in sorted(known, key=lambda fit: fit.exponent.value if fit.exponent else 0.0):
            late = f", {exponent(fit.exponent_large)} over the larger half" if fit.curved and fit.exponent_large else ""
            parts.append(f"{fit.model} {exponent(fit.exponent)}{late}")
        yield f"Latency grows with pixels to the power of: {'; '.join(parts)} (1 is linear, 2 quadratic)."
        if drift := drift_of(group):
            yield f"Between sizes the machine's speed drifted by up to {drift:.0%}, which is part of these exponents."
    unknown = [fit for fit in of_latency if not fit.exponent and fit.sizes > 1]
    for reason in dict.fromkeys(fit.reason for fit in unknown):
        yield f"No exponent of {some([fit.model for fit in unknown if fit.reason == reason])}: {reason}."


def some(words: Sequence[str], separator: str = ", ") -> str:
    """Join the first few words, and count the others; a single other one is named."""
    if len(words) <= _NAMED + 1:
        return separator.join(words)
    return f"{separator.join(words[:_NAMED])}{separator}and {len(words) - _NAMED} more"
