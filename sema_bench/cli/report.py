"""``sema-bench report``: runs as one page."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.output import check_output, say_unreadable
from sema_bench.cli.results import Out, runs_to_read
from sema_bench.errors import EXIT_OK, UsageError


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN …", help="Runs to show, side by side if several.")],
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where to (- is stdout); default: in the run."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    out: Out = "results",
) -> None:
    """Write one self-contained page: summary in words, interactive plots, tables, machine, method. It works offline."""
    from sema_bench.report.html import report_page
    from sema_bench.store.files import atomic_write, write_own
    from sema_bench.store.load import load_runs
    from sema_bench.store.run_folder import RunFolder

    folder, runs = runs_to_read(out, runs)
    loaded = load_runs(folder, runs)
    say_unreadable(loaded)
    if output == "-":
        if open_it:
            raise UsageError("--open shows a file; give -o one")
        typer.echo(report_page(loaded), nl=False)
        raise typer.Exit(EXIT_OK)
    write = write_own
    if output:
        check_output(output)
        path, write = Path(output), atomic_write
    elif len(runs) == 1 and not runs[0].endswith(".json"):
        path = RunFolder.open(folder, runs[0]).path / "report.html"
    else:
        path = Path("report.html")
    write(path, report_page(loaded))
    typer.echo(str(path))
    if open_it:
        webbrowser.open(path.resolve().as_uri())
    raise typer.Exit(EXIT_OK)
