"""Accuracy against resolution: one figure for each set of data and each head, a line for each model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from sema.model_name import parse_model_name
from sema.registry import UnknownNameError
from sema_bench.analysis.conditions import by_model, resolutions_of
from sema_bench.analysis.pooled import SEEDS
from sema_bench.report.figure_style import (
    LABEL_PT,
    SMALL_PT,
    dress,
    label_ends,
    line_style,
    log_log_figure,
    set_ticks,
    write_title,
)
from sema_bench.schema import Record

#: How far the bars of two models stand apart, in the logarithm of the side.
_BESIDE = 0.006
#: Below this many per cent the axis begins at 0.
_FROM_ZERO = 50


def heads_of(models: Sequence[str]) -> dict[str, list[str]]:
    """Return head → models whose name gives it; models of other families have their own, ``""``."""
    groups: dict[str, list[str]] = {}
    for model in models:
        groups.setdefault(_head(model), []).append(model)
    return groups


def accuracy_figure(records: Sequence[Record], models: Sequence[str], head: str) -> Figure | None:
    """Return the figure of records under one set of conditions; None where no accuracy was taken.

    Args:
        records: of models that share their head.
        models: of the whole run; a model that differs from another in its head alone has its colour.
        head: its name, for the title.
    """
    curves = {
        model: [(r, top1) for r in group if r.status == "ok" and (top1 := r.result("top1"))]
        for model, group in by_model(records).items()
    }
    curves = {model: curve for model, curve in curves.items() if curve}
    if not curves:
        return None
    names = list(dict.fromkeys(map(_short, models)))
    figure, axes = log_log_figure(lines=len(curves))
    axes.set_yscale("linear")
    ends = []
    for number, (model, curve) in enumerate(curves.items()):
        style = line_style(names.index(_short(model)))
        sides = [math.sqrt(r.cell.resolution.pixels) for r, _ in curve]
        values = [100 * top1.value for _, top1 in curve]
        low = [100 * (top1.value if top1.ci_low is None else top1.ci_low) for _, top1 in curve]
        high = [100 * (top1.value if top1.ci_high is None else top1.ci_high) for _, top1 in curve]
        axes.plot(sides, values, **style)
        beside = math.exp(_BESIDE * (number - (len(curves) - 1) / 2))  # bars of many models side by side
        axes.vlines([side * beside for side in sides], low, high, color=style["color"], linewidth=1, alpha=0.5)
        ends.append((_short(model), (sides[-1], values[-1]), style["color"]))
    resolutions = resolutions_of(records)
    sides = [math.sqrt(r.pixels) for r in resolutions]
    pad = max(0.03 * math.log(sides[-1] / sides[0]), 0.03)
    axes.set_xlim(sides[0] * math.exp(-pad), sides[-1] * math.exp(pad))
    least = 100 * min(m.value if m.ci_low is None else m.ci_low for curve in curves.values() for _, m in curve)
    bottom = 10 * math.floor(least / 10) if least >= _FROM_ZERO else 0
    axes.set_ylim(bottom, 100 + 0.03 * (100 - bottom))
    set_ticks(axes.xaxis, sides)
    axes.set_xlabel("image side, pixels", fontsize=LABEL_PT)
    axes.set_ylabel("top-1, %", fontsize=LABEL_PT)
    dress(axes)
    seeds = max(int(r.details.get(SEEDS, 1)) for r in records)
    band = f"mean of {seeds} seeds, bars: Student's t 95 %" if seeds > 1 else "bars: Wilson 95 %"
    write_title(axes, f"Accuracy{f', {head} head' if head else ''} ({band})", records)
    axes.tick_params(labelsize=SMALL_PT)
    label_ends(axes, ends)
    return figure


def _short(model: str) -> str:
    """Return a model's name without its head, which the title says."""
    try:
        parsed = parse_model_name(model)
    except (UnknownNameError, ValueError):
        return model
    inner = [parsed.attention] if parsed.attention else []
    inner += [f"{key}={value}" for key, value in sorted(parsed.options.items()) if key != "head"]
    return ",".join(inner) or parsed.model


def _head(model: str) -> str:
    try:
        return str(parse_model_name(model).options.get("head", ""))
    except (UnknownNameError, ValueError):
        return ""
