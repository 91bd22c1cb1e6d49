"""``sema-bench report``: write runs as one page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.options import Out
from sema_bench.cli.output import check_output
from sema_bench.cli.results import read_runs
from sema_bench.errors import UsageError
from sema_bench.report.html import report_page
from sema_bench.store.files import atomic_write, write_own


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN …", help="Runs to show, side by side if several.")],
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="Write to FILE (- is stdout); default: in the run's folder."
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
    out: Out = "results",
) -> None:
    """Write one self-contained page: summary in words, interactive plots, tables, machine, method. It works offline."""
    loaded = read_runs(out, runs)
    if output == "-":
        if open_it:
            raise UsageError("--open shows a file, and -o - writes none; give -o FILE")
        typer.echo(report_page(loaded), nl=False)
        return
    folder = loaded[0].path if len(loaded) == 1 else None
    path = Path(output) if output else (folder or Path()) / "report.html"
    if output:
        check_output(output)
        atomic_write(path, report_page(loaded))
    else:
        write_own(path, report_page(loaded))
    typer.echo(str(path))
    if open_it:
        webbrowser.open(path.resolve().as_uri())
