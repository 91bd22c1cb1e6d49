"""One cell over all runs, as a picture: a line for each machine, in the order in which the runs were made."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from sema_bench.report.figure_style import DPI, LABEL_PT, SMALL_PT, darker, dress
from sema_bench.report.line_styles import COLOURS, LINE, MARKERS
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import METRICS
from sema_bench.store.history import Point
from sema_bench.text.escape import printable_lines

_MOST_LABELS = 24
_WIDTH_IN, _HEIGHT_IN = 8.0, 4.6


def history_figure(label: str, points: Sequence[Point], metric: str) -> Figure:
    """Draw the values of one cell, oldest run at the left; runs are evenly spaced, and named by date and commit."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.1, 0.27, 0.87, 0.58))
    unit = fmt.unit_for(metric, [point.value for point in points if point.value is not None])
    machines = list(dict.fromkeys(point.run.fingerprint for point in points))
    colours = [light for light, _ in COLOURS.values()]
    for number, fingerprint in enumerate(machines):
        colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
        mine = [(x, point) for x, point in enumerate(points) if point.run.fingerprint == fingerprint]
        places = [x for x, _ in mine]
        values = [math.nan if point.value is None else point.value / unit.factor for _, point in mine]
        name = f"{mine[0][1].run.machine} ({fingerprint[:6]})"
        axes.plot(places, values, label=name, color=colour, marker=marker, **LINE)
        for x, point in mine:
            if point.value is None:
                axes.plot([x], [0.02], "x", transform=axes.get_xaxis_transform(), color=colour, clip_on=False)
            if point.low is not None and point.high is not None:
                axes.plot([x, x], [point.low / unit.factor, point.high / unit.factor], color=colour, linewidth=1)
    every = max(1, -(-len(points) // _MOST_LABELS))
    ticks = list(range(0, len(points), every))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([printable_lines(_tick(points[x])) for x in ticks]))
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{METRICS[metric].label}{f', {unit.symbol}' if unit.symbol else ''}", fontsize=LABEL_PT)
    dress(axes)
    axes.tick_params(axis="x", labelrotation=60, labelsize=SMALL_PT - 1)
    for text in axes.get_xticklabels():
        text.set_horizontalalignment("right")
        text.set_rotation_mode("anchor")
        text.set_parse_math(False)
    better = "higher" if METRICS[metric].higher_is_better else "lower"
    place = {"transform": axes.transAxes, "ha": "left", "parse_math": False}
    axes.text(0, 1.11, label, fontsize=11, fontweight="bold", va="bottom", **place)  # type: ignore[arg-type]
    told = f"{len(points)} runs · {better} is better · bars: 95 % interval within a run"
    told += " · ×: failed" if any(point.value is None for point in points) else ""
    axes.text(0, 1.04, told, fontsize=SMALL_PT, color="#555555", va="bottom", **place)  # type: ignore[arg-type]
    legend = axes.legend(fontsize=SMALL_PT, frameon=False, loc="best")
    for number, text in enumerate(legend.get_texts()):
        text.set_color(darker(colours[number % len(colours)]))
        text.set_parse_math(False)
    return figure


def _tick(point: Point) -> str:
    day, _, clock = point.run.created_at.partition("T")
    return f"{day[5:]} {clock[:5]}\n{point.run.commit[:9] or point.run.code[:6]}".strip()
