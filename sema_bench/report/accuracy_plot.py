"""Plot accuracy against resolution: a figure for each set of data and each head, a line for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sema_bench.analysis.conditions import by_model, resolutions_of
from sema_bench.analysis.pooled import seeds_of
from sema_bench.report.figure_style import SMALL_PT, dress, label_ends, log_log_figure, set_ticks, write_title
from sema_bench.report.line_styles import line_styles, shared_backbone, short_name
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.spec.record import Measurement, Record

#: Distance between the marks of two models' seeds, in the logarithm of the side.
_BESIDE = 0.006
#: If a value is below this many per cent, the axis begins at 0.
_FROM_ZERO = 50
#: Conditions that affect accuracy; threads, layout and the like affect time.
_CONDITIONS = ("dtype", "data", "readout")


def accuracy_figure(records: Sequence[Record], models: Sequence[str], head: str) -> Figure | None:
    """Plot records that share conditions and ``head``, with the looks of all ``models``; None without any accuracy."""
    metric = next((name for name in ACCURACIES if any(record.result(name) for record in records)), "")
    curves = {
        model: curve
        for model, group in by_model(records).items()
        if (curve := [(r, share) for r in group if (share := r.result(metric))])
    }
    if not curves:
        return None
    styles, backbone = line_styles(models), shared_backbone(models)
    figure, axes = log_log_figure(lines=len(curves))
    axes.set_yscale("linear")
    ends, drawn = [], []
    resolutions = resolutions_of(records)
    for number, (model, curve) in enumerate(curves.items()):
        style = styles[model]
        values = [100 * share.value for _, share in curve]
        sides = [math.sqrt(r.cell.resolution.pixels) for r, _ in curve]
        beside = math.exp(_BESIDE * (number - (len(curves) - 1) / 2))  # marks of several models stand side by side
        spreads = [side * beside for side in sides]
        if len(resolutions) == 1:  # there is no line: each mark stands at its bar
            sides = spreads
        axes.plot(sides, values, **style)
        for x, (_, share) in zip(spreads, curve, strict=True):
            drawn += [100 * y for y in _draw_spread(axes, x, share, style)]
        ends.append((short_name(model, backbone), (sides[-1], values[-1]), str(style["color"])))
    sides = [math.sqrt(r.pixels) for r in resolutions]
    pad = max(0.03 * math.log(sides[-1] / sides[0]), 0.03)
    axes.set_xlim(sides[0] * math.exp(-pad), sides[-1] * math.exp(pad))
    least = min(drawn)
    bottom = 10 * math.floor(least / 10) if least >= _FROM_ZERO else 0
    axes.set_ylim(bottom, 100 + 0.03 * (100 - bottom))
    set_ticks(axes.xaxis, sides)
    dress(axes, "image side, pixels", f"{METRICS[metric].short}, %")
    seeds = max(map(seeds_of, records))
    legend = (
        f"mean of {seeds} seeds; small: each one"
        if seeds > 1
        else f"bars: {'Wilson' if metric == 'top1' else 'bootstrap'} 95 %"
    )
    names = [backbone, f"{head} head" if head else ""]
    title = ", ".join(filter(None, ["Accuracy" if metric == "top1" else "Segmentation", *names]))
    write_title(axes, f"{title} ({legend})", records, _CONDITIONS)
    axes.tick_params(labelsize=SMALL_PT)
    label_ends(axes, ends)
    return figure


def _draw_spread(axes: Axes, x: float, share: Measurement, style: Mapping[str, Any]) -> Sequence[float]:
    """Draw the value of each seed, or else the interval; return the shares that were drawn."""
    if len(share.samples) > 1:
        seeds = [100 * value for value in share.samples]
        look = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        axes.plot([x] * len(seeds), seeds, markersize=2.8, markeredgewidth=0, alpha=0.6, **look)
        return share.samples
    if share.ci_low is None or share.ci_high is None:
        return (share.value,)
    axes.vlines([x], 100 * share.ci_low, 100 * share.ci_high, color=style["color"], linewidth=1, alpha=0.5)
    return (share.ci_low, share.ci_high)
