"""Plot the roofline: attainable and achieved rate against arithmetic intensity, log-log.

The roof is the slope of memory bandwidth and the ceiling of matrix products, both measured on the device. Traffic is a
lower bound: with all of it counted, a point would lie further left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sema_bench.analysis.conditions import by_model
from sema_bench.analysis.roofline import Peaks
from sema_bench.report import figure_style as style
from sema_bench.report.line_styles import line_styles
from sema_bench.spec import units as fmt
from sema_bench.spec.record import Record
from sema_bench.store.table import stayed_disturbed

#: Room below the lowest rate and above the roof, as shares of the height between them.
_BELOW, _ABOVE = 0.08, 0.1
#: Distance of a label from its point.
_OFFSET_PT = 8.0


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
    lowest, highest = min(*rates, left * peaks.memory_bytes_per_s), max(*rates, peaks.flop_per_s)
    span = max(highest / lowest, 1.2)
    axes.set_ylim(lowest / span**_BELOW, highest * span**_ABOVE)
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
    _label_sizes(axes, {model: by_model(group)[model] for model in curves}, styles)
    style.write_title(axes, "Roofline: achieved and attainable rate", group)
    return figure


def _points(records: Iterable[Record]) -> list[tuple[float, float]]:
    names = ("intensity_flop_per_byte", "achieved_flop_per_s")
    pairs = ([record.result(name) for name in names] for record in records)
    return [(intensity.value, rate.value) for intensity, rate in pairs if intensity and rate]


def _label_sizes(axes: Axes, curves: Mapping[str, Sequence[Record]], styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the image size above or below the first and last point of each curve, where nothing is in the way."""
    taken = np.concatenate([_dense(axes, line.get_xydata()) for line in axes.lines])
    for model, records in curves.items():
        drawn = [record for record in records if _points([record])]
        for record in (drawn[0], drawn[-1]):
            points, label = _points([record]), record.cell.resolution.label
            half = np.array([0.3 * len(label) + 0.3, 0.6]) * style.SMALL_PT
            for offset in (_OFFSET_PT, -_OFFSET_PT):
                centre = _dense(axes, points)[0] + (0, offset)
                if (np.abs(taken - centre) < half).all(axis=1).any():
                    continue
                look: dict[str, Any] = {"fontsize": style.SMALL_PT, "ha": "center", "va": "center"}
                look["color"] = style.darker(str(styles[model]["color"]))
                axes.annotate(label, points[0], (0, offset), textcoords="offset points", **look)
                taken = np.concatenate([taken, centre + half * [(0, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)]])
                break


def _dense(axes: Axes, line: Any) -> NDArray[np.float64]:
    """Return positions along a line, in typographic points."""
    figure: Any = axes.figure
    corners = axes.transData.transform(line) * 72 / figure.dpi
    steps = np.linspace(0, 1, 30)[:, None]
    return np.concatenate([corners, *(a + steps * (b - a) for a, b in itertools.pairwise(corners))])


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
    products = f"matrix products: {fmt.quantity('achieved_flop_per_s', peaks.flop_per_s)}"
    axes.annotate(products, (right, peaks.flop_per_s), xytext=(-4, 4), ha="right", va="bottom", **look)
    memory = f"memory: {peaks.memory_bytes_per_s / 1e9:.3g} GB/s"
    axes.annotate(memory, (ridge, peaks.flop_per_s), xytext=(2, -6), ha="left", va="top", **look)
