"""A run in words: who is fastest where, how cost grows, who overtakes whom, what failed; every one of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sema_bench.analysis.conditions import Conditions, by_conditions, resolutions_of, size_key
from sema_bench.analysis.pooled import pool_weights, seeds_of
from sema_bench.analysis.scaling import Scaling, analyse
from sema_bench.spec import units as fmt
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import Resolution
from sema_bench.store.table import stayed_disturbed

#: What is ranked, with the word for the first and what makes it so.
_RANKED = (
    ("throughput_images_per_s", "fastest"),
    ("peak_memory_bytes", "smallest in peak memory"),
    ("macs", "lightest in MACs"),
    ("top1", "most accurate (top-1)"),
)
_MOST_FAILURES = 5


def summary_of(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return conditions in words → sentences, in the order of the records."""
    pooled = pool_weights(records)
    scaling = analyse(pooled)
    return [
        (conditions.text, list(_sentences(conditions, group, scaling)))
        for conditions, group in by_conditions(pooled).items()
    ]


def _sentences(conditions: Conditions, group: Sequence[Record], scaling: Scaling) -> Iterator[str]:
    sizes = resolutions_of(group)
    ends = list(dict.fromkeys([sizes[0], sizes[-1]]))
    for metric, word in _RANKED:
        yield from (said for size in ends if (said := _first(group, size, metric, word)))
    yield from _growth(conditions, group, scaling)
    found = [c for c in scaling.crossovers if c.conditions == conditions and c.crossings]
    yield from (f"{crossover.statement}." for crossover in found[:_MOST_FAILURES])
    yield from _failures(group)
    if (seeds := max(map(seeds_of, group))) > 1:
        yield f"Each is the mean of {seeds} trainings, with Student's 95 % interval over them."
    if shaky := sum(map(stayed_disturbed, group)):
        yield f"{shaky} of {len(group)} cells (!) were disturbed in more than half of their sample windows."


def _first(group: Sequence[Record], size: Resolution, metric: str, word: str) -> str | None:
    """Say who is first at a size, who comes next, and whether the intervals leave that open."""
    found = [(r.cell.model, m) for r in group if r.cell.resolution == size and (m := r.result(metric)) is not None]
    if len(found) < 2:
        return None
    found.sort(key=lambda pair: pair[1].value, reverse=found[0][1].definition.higher_is_better)
    (first, best), (second, next_best) = found[:2]
    unit = fmt.unit_for(metric, [best.value])
    shown, then = (f"{fmt.number(m.value / unit.factor)} {unit.symbol}".strip() for m in (best, next_best))
    where = f"At {size.label}, "
    if best.value == next_best.value:
        return f"{where}{first} and {second} share the first place: {word} ({shown})."
    unsure = _doubt(best, next_best)
    return f"{where}{first} is {word} ({shown}), then {second} ({then}){unsure}."


def _doubt(one: Measurement, other: Measurement) -> str:
    """Say why the first place is not certain; empty where it is, or where the value is the same at every run."""
    bounds = (one.ci_low, one.ci_high, other.ci_low, other.ci_high)
    if one.definition.statistic in ("exact", "max"):
        return ""
    if any(bound is None for bound in bounds):
        return ", though samples were too few for an interval"
    low, high, other_low, other_high = bounds
    return ", though their intervals overlap" if low <= other_high and other_low <= high else ""  # type: ignore[operator]


def _growth(conditions: Conditions, group: Sequence[Record], scaling: Scaling) -> Iterator[str]:
    fits = [fit for fit in scaling.fits if fit.conditions == conditions and fit.metric == "latency_s" and fit.exponent]
    if not fits:
        return
    told = []
    for fit in sorted(fits, key=lambda fit: fit.exponent.value if fit.exponent else 0.0):
        assert fit.exponent is not None
        late = f", {fit.exponent_tail.value:.2f} at the end" if fit.curved and fit.exponent_tail else ""
        told.append(f"{fit.model} {fit.exponent.value:.2f}{late}")
    yield f"Latency grows with pixels to the power of: {'; '.join(told)} (1 is linear, 2 quadratic)."


def _failures(group: Sequence[Record]) -> Iterator[str]:
    failed = [record for record in group if record.status != "ok"]
    if not failed:
        yield f"All {len(group)} cells ended well."
        return
    yield f"{len(failed)} of {len(group)} cells gave no result."
    for record in sorted(failed, key=lambda r: (r.cell.model, size_key(r.cell.resolution)))[:_MOST_FAILURES]:
        yield f"{record.cell.model} at {record.cell.resolution.label}: {record.status}, {record.reason}"
    if len(failed) > _MOST_FAILURES:
        yield f"And {len(failed) - _MOST_FAILURES} more; the table has them all."
