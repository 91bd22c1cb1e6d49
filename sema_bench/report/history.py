"""Runs over time as people read them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import Conditions
from sema_bench.report.columns import print_columns
from sema_bench.report.figure_style import render
from sema_bench.report.history_plot import history_figure
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS
from sema_bench.store.files import write_own
from sema_bench.store.history import PastRun, Point
from sema_bench.text.escape import printable

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
        ("failed", [Text(str(run.failed), style="red" if run.failed else "") for run in runs]),
        ("commit", [Text(printable(run.commit[:9])) for run in runs]),
        ("code", [Text(printable(run.code[:6])) for run in runs]),
        ("machine", [Text(printable(run.machine)) for run in runs]),
    ]
    print_columns("", "run", [printable(run.name) for run in runs], columns, console, justify="left")


def print_followed(found: _Followed, metric: str, console: Console) -> None:
    """Print each cell's values, oldest run first, and the change from the last run on the same machine and packages."""
    label = METRICS[metric].label
    for key, points in found.items():
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


def followed_rows(found: _Followed, metric: str) -> Iterator[dict[str, object]]:
    """Yield a row for each cell and run."""
    for key, points in found.items():
        for point in points:
            row: dict[str, object] = {"run": point.run.name, "created_at": point.run.created_at}
            row |= {"commit": point.run.commit, "code": point.run.code, "environment": point.run.fingerprint}
            row["model_packages"] = str(point.run.packages.get(cell_of(key).model, ""))
            row |= dict(zip(IDENTITY_FIELDS, key, strict=True))
            yield row | {"status": point.status, metric: point.value, "ci_low": point.low, "ci_high": point.high}


def write_history_plots(found: _Followed, metric: str, folder: Path) -> list[Path]:
    """Write a picture for each cell.

    Raises:
        StoreError: it cannot be written.
    """
    written = []
    for key, points in found.items():
        cell = cell_of(key)
        words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{metric}-{cell.model}-{cell.resolution}").strip("-.")
        stem = f"{words[:80]}-{hashlib.sha256(cell.id.encode()).hexdigest()[:6]}"
        figure = history_figure(f"{_named(cell)} at {cell.resolution.label}", points, metric)
        for kind in ("svg", "png"):
            write_own(folder / f"{stem}.{kind}", render(figure, kind))
        written.append(folder / f"{stem}.svg")
    return written


def cell_of(key: Sequence[object]) -> Cell:
    """Return the cell of an identity as a table holds it: empty text is missing there."""
    body = {name: value for name, value in zip(IDENTITY_FIELDS, key, strict=True) if value is not None}
    return Cell(**body)  # type: ignore[arg-type]


def _named(cell: Cell) -> str:
    return f"{cell.model} ({cell.weights})" if cell.weights else cell.model


def _value(point: Point, factor: float) -> str:
    return point.status if point.value is None else fmt.number(point.value / factor)
