"""Find the models that lead at one size, as far as intervals show it."""

from __future__ import annotations

from collections.abc import Sequence

from sema_bench.spec.record import Measurement, Record

#: Statistics that are the same in every run, and so need no interval.
_REPEATABLE = ("exact", "max")


def leaders(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the best record and all that are level with it, best first; empty if that is all of them.

    Two records are level if their 95 % intervals overlap. Records without an interval are ``unranked``.

    Args:
        records: of one size under the same conditions.
        metric: a name in ``METRICS``.
    """
    ranked = [(record, result) for record in records if (result := record.result(metric)) and _has_bounds(result)]
    if not ranked:
        return []
    higher = ranked[0][1].definition.higher_is_better
    ranked.sort(key=lambda pair: pair[1].value, reverse=higher)
    level = [record for record, result in ranked if _level(result, ranked[0][1])]
    return level if len(level) < len(ranked) else []


def unranked(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the records with a value but no interval: nothing shows where they stand."""
    return [record for record in records if (result := record.result(metric)) and not _has_bounds(result)]


def _has_bounds(result: Measurement) -> bool:
    return result.definition.statistic in _REPEATABLE or (result.ci_low is not None and result.ci_high is not None)


def _level(one: Measurement, other: Measurement) -> bool:
    if one.definition.statistic in _REPEATABLE:
        return one.value == other.value
    if one.ci_low is None or one.ci_high is None or other.ci_low is None or other.ci_high is None:
        return False
    return one.ci_low <= other.ci_high and other.ci_low <= one.ci_high
