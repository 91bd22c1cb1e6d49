"""Analyse how cost grows with image size: exponents with their uncertainty, and the limit of each model.

N is the number of input pixels, H · W. Every model here has a number of tokens proportional to it, so an
exponent against pixels is the exponent against tokens: 1 is linear, 2 is quadratic.

A backbone's cost is a sum of terms (a N + b N² for softmax attention in a network of linear layers) and not a power
law: its exponent drifts from 1 to 2 as the image grows. So each curve gets three exponents: over all sizes, over the
larger half, and between the last two. ``curved`` warns against reading the first one alone.

The 95 % intervals of the first two are Student's t over the residuals of ordinary least squares in log-log. They are
exact for a power law with independent noise; on a curved one they only show how far the points lie from the line. Noise
that all sizes share cancels. ``readable`` leaves out exponents whose interval says nothing; people see only the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sema_bench.analysis.conditions import Conditions, by_conditions, by_model, size_key
from sema_bench.analysis.crossover import Crossover, find_crossovers
from sema_bench.spec.cell import Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.units import counted
from sema_bench.statistics import student_t

SCALING_METRICS = ("latency_s", "relative_latency", "peak_memory_bytes", "activation_bytes", "macs")
#: Fewest sizes for an exponent: two always lie on a line.
MIN_SIZES = 3
#: Fewest sizes, and widest half of the 95 % interval, of an exponent that is shown to people.
SHOWN_SIZES, SHOWN_HALF_WIDTH = 4, 0.5
#: Change of the exponent from the smallest to the largest size that makes a curve ``curved``.
CURVED_CHANGE = 0.1
#: Below this, residuals in log-log are rounding errors (counts are exact to 1e-16, file formats keep 1e-15).
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval, if the data gives one."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the interval; infinite without one."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The growth of one metric of one model under one set of conditions.

    Attributes:
        sizes, sizes_large: distinct numbers of pixels in ``exponent``, and in ``exponent_large``.
        exponent: slope over all sizes; None with fewer than ``MIN_SIZES``.
        exponent_large: slope over the sizes from the geometric middle of the range up; None with fewer than three.
        exponent_tail: slope between the last two sizes, its interval from those of the two measurements.
        r_squared: share of the variance in log-log that the line explains; None for a constant metric.
        curved: the exponent changes over the range by more than ``CURVED_CHANGE`` and, for measured metrics, by more
            than noise; None if three noisy points cannot show it.
        reason: why there is no exponent, or which values the fit leaves out; else "".
    """

    model: str
    conditions: Conditions
    metric: str
    sizes: int
    sizes_large: int = 0
    smallest: Resolution | None = None
    largest: Resolution | None = None
    exponent: Estimate | None = None
    exponent_large: Estimate | None = None
    exponent_tail: Estimate | None = None
    r_squared: float | None = None
    curved: bool | None = None
    reason: str = ""

    @property
    def readable(self) -> Fit:
        """The same without exponents whose interval says nothing; ``reason`` says why the first one is left out."""
        large, tail = self.exponent_large, self.exponent_tail
        unsure = _why_unsure(self.exponent, self.sizes)
        return replace(
            self,
            exponent=None if unsure else self.exponent,
            exponent_large=None if _why_unsure(large, self.sizes_large) else large,
            exponent_tail=tail if tail and tail.half_width <= SHOWN_HALF_WIDTH else None,
            reason=unsure or self.reason,
        )


@dataclass(frozen=True)
class Limit:
    """The largest ``ok`` resolution of a model, and its smallest failure, which may lie below it."""

    model: str
    conditions: Conditions
    largest_ok: Resolution | None
    failure: Record | None = None


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """All results of a run about growth with image size."""

    fits: tuple[Fit, ...]
    limits: tuple[Limit, ...]
    crossovers: tuple[Crossover, ...]

    @property
    def readable(self) -> Scaling:
        """The same without exponents whose interval says nothing."""
        return replace(self, fits=tuple(fit.readable for fit in self.fits))

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per fit for scaling.csv; exponents are pure numbers, sizes are in pixels."""
        limits = {(limit.model, limit.conditions): limit for limit in self.limits}
        return [_row(fit, limits[fit.model, fit.conditions]) for fit in self.fits]

    def crossover_rows(self) -> list[dict[str, Any]]:
        """Return one row per crossing, or per pair that does not cross, for crossovers.csv."""
        return [row for crossover in self.crossovers for row in crossover.rows()]


def analyse(records: Sequence[Record]) -> Scaling:
    """Compute fits, limits and latency crossovers of a run with unique cells."""
    fits: list[Fit] = []
    limits: list[Limit] = []
    crossovers: list[Crossover] = []
    for conditions, group in by_conditions(records).items():
        # With a different batch at each size, per-batch metrics do not scale with size alone.
        fitted = [metric for metric in SCALING_METRICS if not conditions.batch_is_found or metric == "macs"]
        for model, curve in by_model(group).items():
            fits += [_fit_curve(model, conditions, metric, curve) for metric in fitted]
            limits.append(_limit(model, conditions, curve))
        if not conditions.batch_is_found:
            crossovers += find_crossovers(group)
    return Scaling(fits=tuple(fits), limits=tuple(limits), crossovers=tuple(crossovers))


def _why_unsure(exponent: Estimate | None, sizes: int) -> str:
    if exponent is None or sizes < SHOWN_SIZES:
        return _too_few(sizes, SHOWN_SIZES)
    if exponent.half_width > SHOWN_HALF_WIDTH:
        return f"the 95% interval of the exponent is ±{exponent.half_width:.1f}, too wide to say anything"
    return ""


def _too_few(sizes: int, needed: int) -> str:
    return f"{counted(sizes, 'size')} measured; an exponent needs {needed}"


def _fit_curve(model: str, conditions: Conditions, metric: str, curve: Sequence[Record]) -> Fit:
    measured = [r for r in curve if r.result(metric) is not None]
    usable = [r for r in measured if r.measurements[metric].value > 0]
    zeros = len(measured) - len(usable)
    note = f"left out {counted(zeros, 'value')} of 0, which no logarithm has" if zeros else ""
    points = [(r.cell.resolution.pixels, r.measurements[metric].value) for r in usable]
    sizes = len({n for n, _ in points})
    fit = Fit(
        model=model,
        conditions=conditions,
        metric=metric,
        sizes=sizes,
        smallest=usable[0].cell.resolution if usable else None,
        largest=usable[-1].cell.resolution if usable else None,
        exponent_tail=_tail_exponent(metric, usable) if sizes > 1 else None,
        reason=note,
    )
    if sizes < MIN_SIZES:
        return replace(fit, reason="; ".join(filter(None, (_too_few(sizes, MIN_SIZES), note))))
    line = fit_power_law(points)
    middle = math.sqrt(points[0][0] * points[-1][0])
    upper = [point for point in points if point[0] >= middle * (1 - _ROUNDING)]
    large = len({n for n, _ in upper})
    return replace(
        fit,
        sizes_large=large,
        exponent=line.exponent,
        exponent_large=fit_power_law(upper).exponent if large >= MIN_SIZES else None,
        r_squared=line.r_squared,
        curved=_is_curved(points, exact=METRICS[metric].statistic == "exact"),
    )


@dataclass(frozen=True)
class PowerLaw:
    """The line cost ∝ N ^ exponent, by least squares in log-log."""

    exponent: Estimate
    r_squared: float | None


def fit_power_law(points: Iterable[tuple[float, float]]) -> PowerLaw:
    """Fit (N, cost) points; fewer than three distinct N, or a value that is not positive, raise ValueError."""
    pairs = list(points)
    if any(n <= 0 or cost <= 0 for n, cost in pairs):
        raise ValueError("a power law is fitted on logarithms; every N and every cost must be positive")
    if (sizes := len({n for n, _ in pairs})) < MIN_SIZES:
        raise ValueError(f"an exponent needs {MIN_SIZES} sizes, got {sizes}")
    xs = [math.log(n) for n, _ in pairs]
    ys = [math.log(cost) for _, cost in pairs]
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    residual = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    total = math.fsum((y - y_mean) ** 2 for y in ys)
    freedom = len(xs) - 2
    half = student_t(freedom, 0.95) * math.sqrt(residual / freedom / spread)
    return PowerLaw(
        Estimate(slope, slope - half, slope + half),
        r_squared=1 - residual / total if total > _ROUNDING**2 else None,
    )


def _is_curved(points: Sequence[tuple[float, float]], *, exact: bool) -> bool | None:
    """Test whether the quadratic term in log-log is large, and larger than noise."""
    x, y = np.log(points).T
    x = x - x.mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    change = float(2 * coefficients[2] * (x.max() - x.min()))
    if abs(change) <= CURVED_CHANGE:
        return False
    if exact:
        return True
    if (freedom := len(points) - 3) < 1:
        return None
    noise = float(np.sum((y - design @ coefficients) ** 2)) / freedom
    error = math.sqrt(noise * float(np.linalg.inv(design.T @ design)[2, 2]))
    return abs(float(coefficients[2])) > max(student_t(freedom, 0.95) * error, _ROUNDING)


def _tail_exponent(metric: str, curve: Sequence[Record]) -> Estimate:
    last = curve[-1]
    before = next(r for r in reversed(curve) if r.cell.resolution.pixels < last.cell.resolution.pixels)
    run = math.log(last.cell.resolution.pixels / before.cell.resolution.pixels)
    ends = [r.measurements[metric] for r in (before, last)]
    slope = math.log(ends[1].value / ends[0].value) / run
    if METRICS[metric].statistic == "exact":
        return Estimate(slope, slope, slope)
    bounds = [(m.ci_low, m.ci_high) for m in ends]
    widths = [math.log(high / low) / 2 for low, high in bounds if low is not None and high is not None and low > 0]
    if len(widths) < 2:
        return Estimate(slope)
    half = math.hypot(*widths) / run  # independent errors add in quadrature
    return Estimate(slope, slope - half, slope + half)


def _limit(model: str, conditions: Conditions, curve: Sequence[Record]) -> Limit:
    passed = {r.cell.resolution for r in curve if r.status == "ok"}
    failure = next((r for r in curve if r.cell.resolution not in passed), None)
    return Limit(model, conditions, max(passed, key=size_key, default=None), failure)


def _row(fit: Fit, limit: Limit) -> dict[str, Any]:
    row: dict[str, Any] = {
        "model": fit.model,
        **fit.conditions.as_dict(),
        "metric": fit.metric,
        "sizes": fit.sizes,
        "smallest_pixels": fit.smallest.pixels if fit.smallest else None,
        "largest_pixels": fit.largest.pixels if fit.largest else None,
    }
    for name in ("exponent", "exponent_large", "exponent_tail"):
        estimate: Estimate | None = getattr(fit, name)
        bounds = (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
        row[name], row[f"{name}_ci_low"], row[f"{name}_ci_high"] = bounds
    failure = limit.failure
    return row | {
        "r_squared": fit.r_squared,
        "curved": fit.curved,
        "reason": fit.reason,
        "largest_ok": str(limit.largest_ok) if limit.largest_ok else "",
        "first_failed": str(failure.cell.resolution) if failure else "",
        "first_failed_status": failure.status if failure else "",
        "first_failed_reason": failure.reason if failure else "",
    }


_NOWHERE = Conditions.of(Cell(model="", height=1, width=1))
#: Columns of scaling.csv.
SCALING_COLUMNS = tuple(_row(Fit(model="", conditions=_NOWHERE, metric="", sizes=0), Limit("", _NOWHERE, None)))
