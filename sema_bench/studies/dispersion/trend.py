"""Summarise measures of samples against the number of keys, or another size: first and last value, exponent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sema_bench.analysis.scaling import MIN_SIZES, Estimate, fit_power_law
from sema_bench.statistics import mean_interval


@dataclass(frozen=True)
class Trend:
    """One measure against a size; means over the samples, with Student's t 95 % intervals over them."""

    first: Estimate  # at the smallest size
    last: Estimate  # at the largest
    exponent: Estimate | None  # mean of the samples' slopes in log-log; None if a value is 0, or there are few sizes
    exponent_large: Estimate | None  # the same over the larger half of the sizes


@dataclass(frozen=True)
class Summary:
    """All measures of one case."""

    case: Mapping[str, Any]
    first_size: int
    last_size: int
    trends: Mapping[str, Trend]


def summaries(
    samples: Sequence[Any], *, by: Sequence[str], measures: Sequence[str], across: str = "keys"
) -> list[Summary]:
    """Summarise dataclasses with an index ``sample``, one case for each combination of ``by``, in order."""
    cases = []
    for values, group in pd.DataFrame(samples).groupby(list(by), sort=False, dropna=False):
        sizes = group[across]
        trends = {measure: _trend(group, measure, across) for measure in measures}
        cases.append(Summary(dict(zip(by, values, strict=True)), int(sizes.min()), int(sizes.max()), trends))
    return cases


def _trend(group: pd.DataFrame, measure: str, across: str) -> Trend:
    smallest, largest = group[across].min(), group[across].max()
    first, last = (Estimate(*mean_interval(list(group[group[across] == n][measure]))) for n in (smallest, largest))
    large = group[group[across] >= math.sqrt(smallest * largest)]
    return Trend(first, last, _slope(group, measure, across), _slope(large, measure, across))


def _slope(group: pd.DataFrame, measure: str, across: str) -> Estimate | None:
    if group[across].nunique() < MIN_SIZES or not (group[measure] > 0).all():
        return None
    fits = (fit_power_law(zip(each[across], each[measure], strict=True)) for _, each in group.groupby("sample"))
    return Estimate(*mean_interval([fit.exponent.value for fit in fits]))
