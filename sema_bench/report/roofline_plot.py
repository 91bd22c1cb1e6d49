"""Plot the roofline: attainable and achieved rate against arithmetic intensity, log-log.

The roof is the slope of memory bandwidth and the ceiling of matrix products, both measured on the device. Traffic is a
lower bound: with all of it counted, a point would lie further left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sema_bench.analysis.conditions import by_model
from sema_bench.analysis.roofline import Peaks
from sema_bench.report import figure_style as style
from sema_bench.report.line_styles import line_styles
from sema_bench.spec import units as fmt
from sema_bench.spec.record import Record
from sema_bench.store.table import stayed_disturbed


def draw_roofline(group: Sequence[Record], *, models: Sequence[str]) -> Figure | None:
    """Plot records that share their conditions; None if none has a rate and an intensity."""
    curves = {model: points for model, records in by_model(group).items() if (points := _points(records))}
    peaks = _peaks(group)
    if not curves or peaks is None:
        return None
    figure, axes = style.log_log_figure(lines=len(curves))
    rates = [rate for points in curves.values() for _, rate in points]
    intensities = [intensity for points in curves.values() for intensity, _ in points]
    ridge = peaks.flop_per_s / peaks.memory_bytes_per_s
    left, right = min(*intensities, ridge) / 1.6, max(*intensities, ridge) * 1.25
    axes.set_xlim(left, right)
    axes.set_ylim(min(*rates, left * peaks.memory_bytes_per_s) / 1.2, peaks.flop_per_s * 1.6)
    _draw_roof(axes, peaks, left, ridge, right)
    styles = line_styles(models)
    for model, points in curves.items():
        axes.plot(*zip(*points, strict=True), **styles[model])
        if hollow := _points(filter(stayed_disturbed, by_model(group)[model])):
            look = {"marker": styles[model]["marker"], "markersize": styles[model]["markersize"], "linestyle": "none"}
            edge = str(styles[model]["color"])
            axes.plot(*zip(*hollow, strict=True), **look, color="white", markeredgecolor=edge, zorder=4)
    style.set_ticks(axes.xaxis, style.log_ticks(left, right))
    style.set_ticks(axes.yaxis, style.log_ticks(*axes.get_ylim()), factor=1e9)
    style.dress(axes, "arithmetic intensity (FLOP per byte that must be moved)", "rate of arithmetic (GFLOP/s)")
    style.label_ends(axes, [(model, points[-1], str(styles[model]["color"])) for model, points in curves.items()])
    style.write_title(axes, "Roofline: achieved and attainable rate", group)
    return figure


def _points(records: Iterable[Record]) -> list[tuple[float, float]]:
    names = ("intensity_flop_per_byte", "achieved_flop_per_s")
    pairs = ([record.result(name) for name in names] for record in records)
    return [(intensity.value, rate.value) for intensity, rate in pairs if intensity and rate]


def _peaks(group: Sequence[Record]) -> Peaks | None:
    """Return the best peaks in the records; a run may measure them several times."""
    best = None
    for record in group:
        try:
            peaks = Peaks.from_json(record.details["peaks"])
        except (KeyError, TypeError, ValueError):
            continue
        best = peaks if best is None else best.best_of(peaks)
    return best


def _draw_roof(axes: Axes, peaks: Peaks, left: float, ridge: float, right: float) -> None:
    roof = [(left, left * peaks.memory_bytes_per_s), (ridge, peaks.flop_per_s), (right, peaks.flop_per_s)]
    axes.plot(*zip(*roof, strict=True), color="#333333", linewidth=1.6, zorder=2)
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": style.SMALL_PT, "color": style.GREY}
    products = f"products: {fmt.quantity('achieved_flop_per_s', peaks.flop_per_s)}"
    axes.annotate(products, (right, peaks.flop_per_s), xytext=(-4, 4), ha="right", va="bottom", **look)
    memory = f"memory: {peaks.memory_bytes_per_s / 1e9:.3g} GB/s"
    axes.annotate(memory, (ridge, peaks.flop_per_s), xytext=(2, -6), ha="left", va="top", **look)
