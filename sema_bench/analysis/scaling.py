"""How cost grows with image size: exponents with their uncertainty, and where each model stops.

N is the number of input pixels, H · W. Every model here has a number of tokens proportional to it, so an
exponent against pixels is the exponent against tokens: 1 is linear, 2 is quadratic.

A backbone's cost is a sum of terms (a N + b N² for softmax attention in a network of linear layers), which is
not a power law: its exponent drifts from 1 to 2 as the image grows. One number therefore cannot say it. Each
curve gets three: over all sizes, over the larger half of them, and between the last two; and ``curved`` says
when the first must not be read alone.

The 95 % intervals of the first two are Student's t over the residuals of ordinary least squares in log-log.
They hold 95 % of the time where the curve is a power law with independent noise; on a curved one they only
tell how far the points lie from the line. Noise that is common to all sizes cancels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sema_bench.analysis.conditions import Conditions, by_conditions, by_model, size_key
from sema_bench.analysis.crossover import Crossover, find_crossovers
from sema_bench.spec.cell import Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.statistics import student_t

SCALING_METRICS = ("latency_s", "relative_latency", "peak_memory_bytes", "activation_bytes", "macs")
_OF_ONE_IMAGE = frozenset({"macs"})
#: Sizes that an exponent is fitted on, at the least: two always lie on a line.
MIN_SIZES = 3
#: Change of the exponent from the smallest to the largest size that makes a curve ``curved``.
CURVED_CHANGE = 0.1
#: Below this, residuals in log-log are rounding (counts are exact to 1e-16, file formats keep 1e-15).
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval, or without one where the data cannot give it."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The growth of one metric of one model under one set of conditions.

    Attributes:
        sizes: distinct numbers of pixels that were fitted.
        smallest, largest: resolutions that the fit spans; None without points.
        exponent: slope over all sizes; None with fewer than ``MIN_SIZES``, and ``reason`` says so.
        exponent_large: slope over the sizes from the geometric middle of the range up; None with fewer than three.
        exponent_tail: slope between the last two sizes, its interval from those of the two measurements.
        r_squared: share of the variance in log-log that the line explains; None for a metric that is constant.
        curved: whether the exponent changes over the range by more than ``CURVED_CHANGE`` and (for measured
            metrics) by more than noise explains; None where three noisy points cannot tell.
        reason: why there is no exponent, or what was left out of the fit; empty otherwise.
    """

    model: str
    conditions: Conditions
    metric: str
    sizes: int
    smallest: Resolution | None = None
    largest: Resolution | None = None
    exponent: Estimate | None = None
    exponent_large: Estimate | None = None
    exponent_tail: Estimate | None = None
    r_squared: float | None = None
    curved: bool | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Where a model stops: its largest ``ok`` resolution, and the first one that has no ``ok`` record.

    The first failure may lie below the largest success (a crash at one odd size); both are then given.
    """

    model: str
    conditions: Conditions
    largest_ok: Resolution | None
    first_failed: Resolution | None = None
    status: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Everything that a run says about growth with image size."""

    fits: tuple[Fit, ...]
    limits: tuple[Limit, ...]
    crossovers: tuple[Crossover, ...]

    def fit(self, model: str, conditions: Conditions, metric: str) -> Fit | None:
        """Return the fit of one curve, or None where the run has no such curve."""
        found = (f for f in self.fits if (f.model, f.conditions, f.metric) == (model, conditions, metric))
        return next(found, None)

    def rows(self) -> list[dict[str, str | int | float | bool | None]]:
        """Return one row per fit for scaling.csv; exponents are pure numbers, sizes are in pixels."""
        limits = {(limit.model, limit.conditions): limit for limit in self.limits}
        return [_row(fit, limits[fit.model, fit.conditions]) for fit in self.fits]

    def crossover_rows(self) -> list[dict[str, str | int | float | bool | None]]:
        """Return one row per crossing, or per pair that does not cross, for crossovers.csv."""
        return [row for crossover in self.crossovers for row in crossover.rows()]


def analyse(records: Sequence[Record], *, metrics: Sequence[str] = SCALING_METRICS) -> Scaling:
    """Return fits, limits and latency crossovers of a run. Cells must be unique (the store keeps the latest)."""
    fits: list[Fit] = []
    limits: list[Limit] = []
    crossovers: list[Crossover] = []
    for conditions, group in by_conditions(records).items():
        # Where each size has a batch of its own, nothing that is of a batch grows with the size alone.
        fitted = [metric for metric in metrics if not conditions.batch_is_found or metric in _OF_ONE_IMAGE]
        for model, curve in by_model(group).items():
            fits += [_fit_curve(model, conditions, metric, curve) for metric in fitted]
            limits.append(_limit(model, conditions, curve))
        if not conditions.batch_is_found:
            crossovers += find_crossovers(group)
    return Scaling(fits=tuple(fits), limits=tuple(limits), crossovers=tuple(crossovers))


def _fit_curve(model: str, conditions: Conditions, metric: str, curve: Sequence[Record]) -> Fit:
    measured = [r for r in curve if r.result(metric) is not None]
    usable = [r for r in measured if r.measurements[metric].value > 0]
    zeros = len(measured) - len(usable)
    note = f"left out {zeros} value{'' if zeros == 1 else 's'} of 0, which no logarithm has" if zeros else ""
    points = [(r.cell.resolution.pixels, r.measurements[metric].value) for r in usable]
    sizes = len({n for n, _ in points})
    ends = (usable[0].cell.resolution, usable[-1].cell.resolution) if usable else (None, None)
    if sizes < MIN_SIZES:
        short = f"{sizes} size{'' if sizes == 1 else 's'} measured; an exponent needs {MIN_SIZES}"
        return Fit(
            model=model, conditions=conditions, metric=metric, sizes=sizes, smallest=ends[0], largest=ends[1],
            exponent_tail=_tail_exponent(metric, usable) if sizes == 2 else None,
            reason="; ".join(filter(None, (short, note))),
        )  # fmt: skip
    line = fit_power_law(points)
    middle = math.sqrt(points[0][0] * points[-1][0])
    upper = [point for point in points if point[0] >= middle * (1 - _ROUNDING)]
    return Fit(
        model=model, conditions=conditions, metric=metric, sizes=sizes, smallest=ends[0], largest=ends[1],
        exponent=line.exponent,
        exponent_large=fit_power_law(upper).exponent if len({n for n, _ in upper}) >= MIN_SIZES else None,
        exponent_tail=_tail_exponent(metric, usable),
        r_squared=line.r_squared,
        curved=_is_curved(points, exact=METRICS[metric].statistic == "exact"),
        reason=note,
    )  # fmt: skip


@dataclass(frozen=True)
class PowerLaw:
    """cost = scale · N ^ exponent, as least squares in log-log sees it."""

    exponent: Estimate
    scale: float
    r_squared: float | None


def fit_power_law(points: Iterable[tuple[float, float]], *, level: float = 0.95) -> PowerLaw:
    """Fit cost = scale · N ^ exponent to (N, cost) points by least squares on the logarithms.

    Raises:
        ValueError: fewer than three distinct N, or a value that is not positive.
    """
    pairs = list(points)
    if any(n <= 0 or cost <= 0 for n, cost in pairs):
        raise ValueError("a power law is fitted on logarithms; every N and every cost must be positive")
    if len({n for n, _ in pairs}) < MIN_SIZES:
        raise ValueError(f"an exponent needs {MIN_SIZES} sizes, got {len({n for n, _ in pairs})}")
    xs = [math.log(n) for n, _ in pairs]
    ys = [math.log(cost) for _, cost in pairs]
    x_mean, y_mean = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    spread = math.fsum((x - x_mean) ** 2 for x in xs)
    slope = math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    residual = math.fsum((y - y_mean - slope * (x - x_mean)) ** 2 for x, y in zip(xs, ys, strict=True))
    total = math.fsum((y - y_mean) ** 2 for y in ys)
    freedom = len(xs) - 2
    half = student_t(freedom, level) * math.sqrt(residual / freedom / spread)
    return PowerLaw(
        exponent=Estimate(slope, slope - half, slope + half),
        scale=math.exp(y_mean - slope * x_mean),
        r_squared=1 - residual / total if total > _ROUNDING**2 else None,
    )


def _is_curved(points: Sequence[tuple[float, float]], *, exact: bool) -> bool | None:
    """Test the quadratic term in log-log: large enough to matter, and larger than the noise makes it."""
    import numpy as np

    x = np.log([n for n, _ in points])
    y = np.log([cost for _, cost in points])
    x = x - x.mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    change = float(2 * coefficients[2] * (x.max() - x.min()))
    if abs(change) <= CURVED_CHANGE:
        return False
    if exact:
        return True
    freedom = len(points) - 3
    if freedom < 1:
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
    half = math.hypot(*widths) / run  # the two are measured apart: their errors add in quadrature
    return Estimate(slope, slope - half, slope + half)


def _limit(model: str, conditions: Conditions, curve: Sequence[Record]) -> Limit:
    passed = {r.cell.resolution for r in curve if r.status == "ok"}
    failed = next((r for r in curve if r.cell.resolution not in passed), None)
    largest = max(passed, key=size_key, default=None)
    if failed is None:
        return Limit(model=model, conditions=conditions, largest_ok=largest)
    return Limit(
        model=model, conditions=conditions, largest_ok=largest,
        first_failed=failed.cell.resolution, status=failed.status, reason=failed.reason,
    )  # fmt: skip


def _row(fit: Fit, limit: Limit) -> dict[str, str | int | float | bool | None]:
    row: dict[str, str | int | float | bool | None] = {
        "model": fit.model,
        **fit.conditions.as_dict(),
        "metric": fit.metric,
        "sizes": fit.sizes,
        "smallest_pixels": fit.smallest.pixels if fit.smallest else None,
        "largest_pixels": fit.largest.pixels if fit.largest else None,
    }
    estimates: Mapping[str, Estimate | None] = {
        "exponent": fit.exponent,
        "exponent_large": fit.exponent_large,
        "exponent_tail": fit.exponent_tail,
    }
    for name, estimate in estimates.items():
        row[name] = estimate.value if estimate else None
        row[f"{name}_ci_low"] = estimate.low if estimate else None
        row[f"{name}_ci_high"] = estimate.high if estimate else None
    return row | {
        "r_squared": fit.r_squared,
        "curved": fit.curved,
        "reason": fit.reason,
        "largest_ok": str(limit.largest_ok) if limit.largest_ok else "",
        "first_failed": str(limit.first_failed) if limit.first_failed else "",
        "first_failed_status": limit.status,
        "first_failed_reason": limit.reason,
    }


def _columns() -> tuple[str, ...]:
    nothing = Conditions.of(Cell(model="", height=1, width=1))
    fit = Fit(model="", conditions=nothing, metric="", sizes=0)
    return tuple(_row(fit, Limit(model="", conditions=nothing, largest_ok=None)))


#: Columns of scaling.csv.
SCALING_COLUMNS = _columns()
