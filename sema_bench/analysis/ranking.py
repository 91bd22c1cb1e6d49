"""Find the models that lead at one size, as far as intervals show it."""

from __future__ import annotations

from collections.abc import Sequence

from sema_bench.spec.record import Measurement, Record


def leaders(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the best of the records of one size and all that are level with it, best first; empty if all are level.

    Two records are level if their 95 % intervals overlap. Records without an interval are ``unranked``.
    """
    ranked = [
        (record, result, bounds)
        for record in records
        if (result := record.result(metric)) and (bounds := _bounds(result))
    ]
    if not ranked:
        return []
    higher = ranked[0][1].definition.higher_is_better
    ranked.sort(key=lambda each: each[1].value, reverse=higher)
    low, high = ranked[0][2]
    level = [record for record, _, bounds in ranked if bounds[0] <= high and low <= bounds[1]]
    return level if len(level) < len(ranked) else []


def are_level(records: Sequence[Record], metric: str) -> bool:
    """Check whether the intervals of all ``records`` overlap one another, not only that of the first."""
    bounds = [bounds for record in records if (result := record.result(metric)) and (bounds := _bounds(result))]
    return max(low for low, _ in bounds) <= min(high for _, high in bounds)


def unranked(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the records with a value but no interval: nothing shows where they stand."""
    return [record for record in records if (result := record.result(metric)) and not _bounds(result)]


def _bounds(result: Measurement) -> tuple[float, float] | None:
    if result.definition.is_repeatable:
        return result.value, result.value
    return None if result.ci_low is None or result.ci_high is None else (result.ci_low, result.ci_high)
