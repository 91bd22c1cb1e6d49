"""Show runs over time: tables, CSV rows, and a plot of one cell over all runs."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import Conditions
from sema_bench.report import figure_style as style
from sema_bench.report.columns import Column, print_columns
from sema_bench.report.line_styles import COLOURS, LINE, MARKERS
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.store.history import PastRun, Point
from sema_bench.text.escape import printable, printable_lines

_MOST_LABELS = 24
_PLOT_WIDTH_IN = 8.0

#: Identity of a cell → its points in all runs.
_Followed = Mapping[tuple[object, ...], Sequence[Point]]


def print_runs(runs: Sequence[PastRun], console: Console) -> None:
    """Print a line for each run, oldest first."""
    if not runs:
        console.print(Text("no runs yet; sema-bench run suites/quick.toml makes one"))
        return
    columns: list[Column] = [
        ("created (UTC)", [_minute(run) for run in runs]),
        ("suite", [run.suite for run in runs]),
        ("ok", [str(run.ok) for run in runs]),
        ("no result", [Text(str(run.failed), style="red" if run.failed else "") for run in runs]),
        ("commit", [run.commit[:9] for run in runs]),
        ("code", [run.code[:6] for run in runs]),
        ("machine", [run.machine for run in runs]),
    ]
    print_columns("", "run", [run.name for run in runs], columns, console, justify="left", whole=True)


def _minute(run: PastRun) -> str:
    return run.created_at[:16].replace("T", " ")


def print_followed(followed: _Followed, metric: str, console: Console) -> None:
    """Print each cell's values, oldest run first, with the change on the same machine and packages."""
    for key, points in followed.items():
        cell, runs = cell_of(key), [point.run for point in points]
        heading = f"{_named(cell)} {cell.resolution.label} · {Conditions.of(cell).text}"
        console.print(Text(printable(heading), style="bold"))
        unit = fmt.unit_for(metric, [point.value for point in points if point.value is not None])
        packages = [str(run.packages.get(cell.model, "")) for run in runs]
        before: dict[tuple[str, str], float] = {}
        values, changes = [], []
        for point, code in zip(points, packages, strict=True):
            last = before.get((point.run.fingerprint, code))
            changes.append(fmt.EMPTY if not last or point.value is None else f"{point.value / last - 1:+.1%}")
            values.append(point.status if point.value is None else fmt.number(point.value / unit.factor))
            if point.value is not None:
                before[point.run.fingerprint, code] = point.value
        columns: list[Column] = [
            ("created (UTC)", [_minute(run) for run in runs]),
            ("commit", [run.commit[:9] for run in runs]),
            ("code", [run.code[:6] for run in runs]),
            *([("model's packages", packages)] if any(packages) else []),
            ("machine", [run.fingerprint[:6] for run in runs]),
            (_with_unit(metric, unit), values),
            ("change", changes),
        ]
        print_columns("", "run", [run.name for run in runs], columns, console, justify="right", whole=True)


def _with_unit(metric: str, unit: fmt.Unit) -> str:
    return f"{METRICS[metric].label}, {unit.symbol}" if unit.symbol else METRICS[metric].label


def followed_rows(followed: _Followed, metric: str) -> Iterator[dict[str, object]]:
    """Yield a row for each cell and run."""
    for key, points in followed.items():
        for point in points:
            row: dict[str, object] = {"run": point.run.name, "created_at": point.run.created_at}
            row |= {"commit": point.run.commit, "code": point.run.code, "environment": point.run.fingerprint}
            row["model_packages"] = str(point.run.packages.get(cell_of(key).model, ""))
            row |= dict(zip(IDENTITY_FIELDS, key, strict=True))
            yield row | {"status": point.status, metric: point.value, "ci_low": point.low, "ci_high": point.high}


def write_history_plots(followed: _Followed, metric: str, folder: Path) -> list[Path]:
    """Write a plot for each cell; return the SVG files."""
    written = []
    for key, points in followed.items():
        cell = cell_of(key)
        words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{metric}-{cell.model}-{cell.resolution}").strip("-.")
        stem = f"{words[:80]}-{hashlib.sha256(cell.id.encode()).hexdigest()[:6]}"
        figure = history_figure(f"{_named(cell)} at {cell.resolution.label}", points, metric)
        written.append(style.write_figure(figure, folder, stem)[0])
    return written


def history_figure(label: str, points: Sequence[Point], metric: str) -> Figure:
    """Draw the values of one cell, a line for each machine; runs are evenly spaced, the oldest at the left."""
    figure = Figure(figsize=(_PLOT_WIDTH_IN, style.HEIGHT_IN), dpi=style.DPI, facecolor="white")
    axes = figure.add_axes((0.1, 0.27, 0.87, 0.58))
    unit = fmt.unit_for(metric, [point.value for point in points if point.value is not None])
    machines = dict.fromkeys(point.run.fingerprint for point in points)
    colours = [light for light, _ in COLOURS.values()]
    for fingerprint, colour, marker in zip(machines, itertools.cycle(colours), itertools.cycle(MARKERS), strict=False):
        mine = [(x, point) for x, point in enumerate(points) if point.run.fingerprint == fingerprint]
        values = [math.nan if point.value is None else point.value / unit.factor for _, point in mine]
        name = f"{mine[0][1].run.machine} ({fingerprint[:6]})"
        axes.plot([x for x, _ in mine], values, label=name, color=colour, marker=marker, **LINE)
        for x, point in mine:
            if point.value is None:
                axes.plot([x], [0.02], "x", transform=axes.get_xaxis_transform(), color=colour, clip_on=False)
            if point.low is not None and point.high is not None:
                axes.plot([x, x], [point.low / unit.factor, point.high / unit.factor], color=colour, linewidth=1)
    ticks = range(0, len(points), math.ceil(len(points) / _MOST_LABELS))
    style.set_ticks(axes.xaxis, ticks, [printable_lines(_tick(points[x])) for x in ticks])
    axes.set_xlim(-0.5, len(points) - 0.5)
    axes.set_ylim(bottom=0)
    style.dress(axes, up=_with_unit(metric, unit))
    axes.tick_params(axis="x", labelrotation=60, labelsize=style.SMALL_PT - 1)
    for text in axes.get_xticklabels():
        text.set_horizontalalignment("right")
        text.set_rotation_mode("anchor")
        text.set_parse_math(False)
    better = "higher" if METRICS[metric].higher_is_better else "lower"
    failed = " · ×: failed" if any(point.value is None for point in points) else ""
    subtitle = f"{len(points)} runs · {better} is better · bars: 95 % interval within a run{failed}"
    style.write_heading(axes, label, subtitle, at=1.11)
    legend = axes.legend(fontsize=style.SMALL_PT, frameon=False, loc="best")
    for text, colour in zip(legend.get_texts(), itertools.cycle(colours), strict=False):
        text.set_color(style.darker(colour))
        text.set_parse_math(False)
    return figure


def _tick(point: Point) -> str:
    day, _, clock = point.run.created_at.partition("T")
    return f"{day[5:]} {clock[:5]}\n{point.run.commit[:9] or point.run.code[:6]}".strip()


def cell_of(key: Sequence[object]) -> Cell:
    """Rebuild a cell from its identity in a table, where None stands for empty text."""
    values: Any = zip(IDENTITY_FIELDS, key, strict=True)
    return Cell(**{name: value for name, value in values if value is not None})


def _named(cell: Cell) -> str:
    return f"{cell.model} ({cell.weights})" if cell.weights else cell.model
