"""Accuracy against resolution: one figure for each set of data and each head, a line for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sema_bench.analysis.conditions import by_model, resolutions_of
from sema_bench.analysis.pooled import seeds_of
from sema_bench.report.figure_style import LABEL_PT, SMALL_PT, dress, label_ends, log_log_figure, set_ticks, write_title
from sema_bench.report.line_styles import line_styles, shared_backbone, short_name
from sema_bench.spec.record import Measurement, Record

#: How far the seeds of two models stand apart, in the logarithm of the side.
_BESIDE = 0.006
#: Below this many per cent the axis begins at 0.
_FROM_ZERO = 50
#: What accuracy depends on; threads, layout and the like belong to time.
_CONDITIONS = ("dtype", "data")


def accuracy_figure(records: Sequence[Record], models: Sequence[str], head: str) -> Figure | None:
    """Return the figure of records under one set of conditions; None where no accuracy was taken.

    Args:
        records: of models that share their head.
        models: of the whole run, so that each looks the same in all of its figures.
        head: its name, for the title.
    """
    curves = {
        model: [(r, top1) for r in group if r.status == "ok" and (top1 := r.result("top1"))]
        for model, group in by_model(records).items()
    }
    curves = {model: curve for model, curve in curves.items() if curve}
    if not curves:
        return None
    styles, backbone = line_styles(models), shared_backbone(models)
    figure, axes = log_log_figure(lines=len(curves))
    axes.set_yscale("linear")
    ends, drawn = [], []
    resolutions = resolutions_of(records)
    for number, (model, curve) in enumerate(curves.items()):
        style = styles[model]
        values = [100 * top1.value for _, top1 in curve]
        sides = [math.sqrt(r.cell.resolution.pixels) for r, _ in curve]
        beside = math.exp(_BESIDE * (number - (len(curves) - 1) / 2))  # what stands for many models, side by side
        spreads = [side * beside for side in sides]
        if len(resolutions) == 1:  # no line to stand on: each mark goes with its bar
            sides = spreads
        axes.plot(sides, values, **style)
        for x, (_, top1) in zip(spreads, curve, strict=True):
            drawn += [100 * y for y in _draw_spread(axes, x, top1, style)]
        ends.append((short_name(model, backbone), (sides[-1], values[-1]), str(style["color"])))
    sides = [math.sqrt(r.pixels) for r in resolutions]
    pad = max(0.03 * math.log(sides[-1] / sides[0]), 0.03)
    axes.set_xlim(sides[0] * math.exp(-pad), sides[-1] * math.exp(pad))
    least = min(drawn)
    bottom = 10 * math.floor(least / 10) if least >= _FROM_ZERO else 0
    axes.set_ylim(bottom, 100 + 0.03 * (100 - bottom))
    set_ticks(axes.xaxis, sides)
    axes.set_xlabel("image side, pixels", fontsize=LABEL_PT)
    axes.set_ylabel("top-1, %", fontsize=LABEL_PT)
    dress(axes)
    seeds = max(map(seeds_of, records))
    what = f"mean of {seeds} seeds; small: each one" if seeds > 1 else "bars: Wilson 95 %"
    names = [backbone, f"{head} head" if head else ""]
    write_title(axes, f"Accuracy{''.join(f', {name}' for name in names if name)} ({what})", records, _CONDITIONS)
    axes.tick_params(labelsize=SMALL_PT)
    label_ends(axes, ends)
    return figure


def _draw_spread(axes: Axes, x: float, top1: Measurement, style: Mapping[str, Any]) -> Sequence[float]:
    """Draw what each seed gave, or the interval where there is one; return the shares that were drawn."""
    if len(top1.samples) > 1:
        seeds = [100 * share for share in top1.samples]
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        axes.plot([x] * len(seeds), seeds, markersize=2.8, markeredgewidth=0, alpha=0.6, **look)
        return top1.samples
    if top1.ci_low is None or top1.ci_high is None:
        return (top1.value,)
    axes.vlines([x], 100 * top1.ci_low, 100 * top1.ci_high, color=style["color"], linewidth=1, alpha=0.5)
    return (top1.ci_low, top1.ci_high)
