"""Draw measures of either study against the number of keys: a column per measure, a row per kind of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from sema_bench.report import figure_style as style

_PANEL_IN, _LOWEST_IN = 2.75, 2.3
_TOP_IN, _BOTTOM_IN = 1.0, 0.6
#: If there are more ticks than this, only powers of ten stay, or every other tick.
_MOST_TICKS = 5


@dataclass(frozen=True)
class Line:
    """One attention: its name, its look, and a table with ``keys`` and the measures, a row per sample."""

    name: str
    look: Mapping[str, Any]
    table: pd.DataFrame

    def over_keys(self, measure: str) -> pd.DataFrame:
        """Return min, mean and max over the samples, by the number of keys; a value of 0 is left out."""
        over_keys: pd.DataFrame = (
            self.table[self.table[measure] > 0].groupby("keys")[measure].agg(["min", "mean", "max"])
        )
        return over_keys


def draw_panels(
    heading: tuple[str, str],
    rows: Mapping[str, Sequence[Line]],
    measures: Mapping[str, str],
    *,
    even: Sequence[str] = (),
) -> Figure:
    """Draw mean and range over the samples of every line; ``rows`` and ``measures`` map to lines and to titles.

    Panels of the measures in ``even`` show 1/N, too.
    """
    height = max(_LOWEST_IN, max(map(len, rows.values())) * style.LINE_IN + 0.3)
    size = (_PANEL_IN * len(measures), height * len(rows) + _TOP_IN + _BOTTOM_IN)
    figure = Figure(figsize=size, dpi=style.DPI, facecolor="white")
    figure.subplots_adjust(0.07, _BOTTOM_IN / size[1], 0.98, 1 - _TOP_IN / size[1], wspace=0.26, hspace=0.14)
    grid = figure.subplots(len(rows), len(measures), squeeze=False, sharex=True, sharey="col")
    for panels, lines in zip(grid, rows.values(), strict=True):
        for axes, measure in zip(panels, measures, strict=True):
            _draw(axes, lines, measure, even=measure in even)
    for axes in grid.flat:  # once all limits are known
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = style.log_ticks(*limits)
            if len(ticks) > _MOST_TICKS:
                decades = [tick for tick in ticks if f"{tick:e}".startswith("1.000000e")]
                ticks = decades if len(decades) > 1 else ticks[::2]
            style.set_ticks(axis, ticks)
            axis.set_minor_locator(NullLocator())
        style.dress(axes)
    for axes, title in zip(grid[0], measures.values(), strict=True):
        axes.set_title(title, fontsize=style.LABEL_PT, loc="left", parse_math=False)
    for axes in grid[-1]:
        axes.set_xlabel("keys N", fontsize=style.LABEL_PT)
    for panels, (row, lines) in zip(grid, rows.items(), strict=True):
        panels[0].set_ylabel(row, fontsize=style.LABEL_PT)
        last = [(line, line.over_keys(list(measures)[-1])["mean"]) for line in lines]
        ends = [(line.name, (means.index[-1], means.iloc[-1]), str(line.look["color"])) for line, means in last]
        style.label_ends(panels[-1], ends)
    top = figure.add_axes((0.07, 1 - 1.7 / size[1], 0.91, 1 / size[1]), frameon=False, xticks=[], yticks=[], zorder=-1)
    style.write_heading(top, *heading, at=1.22)
    return figure


def _draw(axes: Axes, lines: Sequence[Line], measure: str, *, even: bool) -> None:
    axes.loglog()
    for line in lines:
        over_keys = line.over_keys(measure)
        keys, look = over_keys.index, line.look
        axes.fill_between(keys, over_keys["min"], over_keys["max"], color=look["color"], alpha=0.13, linewidth=0)
        axes.plot(keys, over_keys["mean"], **look)
    if even:
        ends = [min(line.table["keys"].min() for line in lines), max(line.table["keys"].max() for line in lines)]
        axes.plot(ends, [1 / n for n in ends], color=style.GREY, linewidth=1.0, linestyle=(0, (2, 2)), zorder=2)
