"""Runs over time: tables, CSV rows, and a picture of one cell over all runs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import Conditions
from sema_bench.report.columns import print_columns
from sema_bench.report.figure_style import DPI, HEIGHT_IN, SMALL_PT, darker, dress, render, write_heading
from sema_bench.report.line_styles import COLOURS, LINE, MARKERS
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.store.files import write_own
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
    columns = [
        ("created (UTC)", [Text(run.created_at[:16].replace("T", " ")) for run in runs]),
        ("suite", [Text(printable(run.suite)) for run in runs]),
        ("ok", [Text(str(run.ok)) for run in runs]),
        ("no result", [Text(str(run.failed), style="red" if run.failed else "") for run in runs]),
        ("commit", [Text(printable(run.commit[:9])) for run in runs]),
        ("code", [Text(printable(run.code[:6])) for run in runs]),
        ("machine", [Text(printable(run.machine)) for run in runs]),
    ]
    print_columns("", "run", [printable(run.name) for run in runs], columns, console, justify="left")


def print_followed(followed: _Followed, metric: str, console: Console) -> None:
    """Print each cell's values, oldest run first, with the change on the same machine and packages."""
    label = METRICS[metric].label
    for key, points in followed.items():
        cell = cell_of(key)
        heading = f"{_named(cell)} {cell.resolution.label} · {Conditions.of(cell).text}"
        console.print(Text(printable(heading), style="bold"))
        unit = fmt.unit_for(metric, [point.value for point in points if point.value is not None])
        packages = [str(point.run.packages.get(cell.model, "")) for point in points]
        before: dict[tuple[str, str], float] = {}
        changes = []
        for point, code in zip(points, packages, strict=True):
            last = before.get((point.run.fingerprint, code))
            changes.append(fmt.EMPTY if not last or point.value is None else f"{point.value / last - 1:+.1%}")
            if point.value is not None:
                before[point.run.fingerprint, code] = point.value
        columns = [
            ("created (UTC)", [Text(point.run.created_at[:16].replace("T", " ")) for point in points]),
            ("commit", [Text(printable(point.run.commit[:9])) for point in points]),
            ("code", [Text(printable(point.run.code[:6])) for point in points]),
            *([("model's packages", [Text(printable(code)) for code in packages])] if any(packages) else []),
            ("machine", [Text(point.run.fingerprint[:6]) for point in points]),
            (f"{label}, {unit.symbol}" if unit.symbol else label, [Text(_value(p, unit.factor)) for p in points]),
            ("change", [Text(change) for change in changes]),
        ]
        print_columns("", "run", [printable(p.run.name) for p in points], columns, console, justify="right")


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
    """Write a picture for each cell; return the SVG files."""
    written = []
    for key, points in followed.items():
        cell = cell_of(key)
        words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{metric}-{cell.model}-{cell.resolution}").strip("-.")
        stem = f"{words[:80]}-{hashlib.sha256(cell.id.encode()).hexdigest()[:6]}"
        figure = history_figure(f"{_named(cell)} at {cell.resolution.label}", points, metric)
        for kind in ("svg", "png"):
            write_own(folder / f"{stem}.{kind}", render(figure, kind))
        written.append(folder / f"{stem}.svg")
    return written


def history_figure(label: str, points: Sequence[Point], metric: str) -> Figure:
    """Draw the values of one cell, a line for each machine; runs are evenly spaced, the oldest at the left."""
    figure = Figure(figsize=(_PLOT_WIDTH_IN, HEIGHT_IN), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.1, 0.27, 0.87, 0.58))
    unit = fmt.unit_for(metric, [point.value for point in points if point.value is not None])
    machines = list(dict.fromkeys(point.run.fingerprint for point in points))
    colours = [light for light, _ in COLOURS.values()]
    for number, fingerprint in enumerate(machines):
        colour, marker = colours[number % len(colours)], MARKERS[number % len(MARKERS)]
        mine = [(x, point) for x, point in enumerate(points) if point.run.fingerprint == fingerprint]
        values = [math.nan if point.value is None else point.value / unit.factor for _, point in mine]
        name = f"{mine[0][1].run.machine} ({fingerprint[:6]})"
        axes.plot([x for x, _ in mine], values, label=name, color=colour, marker=marker, **LINE)
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
    dress(axes, up=f"{METRICS[metric].label}{f', {unit.symbol}' if unit.symbol else ''}")
    axes.tick_params(axis="x", labelrotation=60, labelsize=SMALL_PT - 1)
    for text in axes.get_xticklabels():
        text.set_horizontalalignment("right")
        text.set_rotation_mode("anchor")
        text.set_parse_math(False)
    better = "higher" if METRICS[metric].higher_is_better else "lower"
    legend_line = f"{len(points)} runs · {better} is better · bars: 95 % interval within a run"
    legend_line += " · ×: failed" if any(point.value is None for point in points) else ""
    write_heading(axes, label, legend_line, at=1.11)
    legend = axes.legend(fontsize=SMALL_PT, frameon=False, loc="best")
    for number, text in enumerate(legend.get_texts()):
        text.set_color(darker(colours[number % len(colours)]))
        text.set_parse_math(False)
    return figure


def _tick(point: Point) -> str:
    day, _, clock = point.run.created_at.partition("T")
    return f"{day[5:]} {clock[:5]}\n{point.run.commit[:9] or point.run.code[:6]}".strip()


def cell_of(key: Sequence[object]) -> Cell:
    """Rebuild the cell of an identity from a table, where empty text is missing."""
    body: dict[str, Any] = {name: value for name, value in zip(IDENTITY_FIELDS, key, strict=True) if value is not None}
    return Cell(**body)


def _named(cell: Cell) -> str:
    return f"{cell.model} ({cell.weights})" if cell.weights else cell.model


def _value(point: Point, factor: float) -> str:
    return point.status if point.value is None else fmt.number(point.value / factor)
