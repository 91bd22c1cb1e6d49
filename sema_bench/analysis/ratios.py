"""Compute the interval of the ratio of two measured values from the intervals of both.

The method is MOVER: it combines the intervals in logarithms (Donner & Zou, Stat. Methods Med. Res. 21, 2012).
"""

from __future__ import annotations

import math

from sema_bench.spec.record import Measurement


def interval_of_ratio(top: Measurement, bottom: Measurement) -> tuple[float | None, float | None]:
    """Return the 95 % interval of ``top / bottom`` from those of both; None if one has none or touches 0."""
    bounds = (top.value, top.ci_low, top.ci_high, bottom.value, bottom.ci_low, bottom.ci_high)
    logs = [math.log(bound) for bound in bounds if bound is not None and bound > 0]
    if len(logs) != len(bounds):
        return None, None
    a, a_low, a_high, b, b_low, b_high = logs
    low = (a - b) - math.hypot(a - a_low, b_high - b)
    high = (a - b) + math.hypot(a_high - a, b - b_low)
    return math.exp(low), math.exp(high)
