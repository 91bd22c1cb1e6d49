"""``sema-bench export``: runs as a table for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.output import check_output, say_unreadable
from sema_bench.cli.results import Out, runs_to_read
from sema_bench.errors import EXIT_OK, UsageError, unknown_name


def export(
    runs: Annotated[list[str], typer.Argument(metavar="RUN …", help="Runs, in the order of their rows.")],
    format_name: Annotated[
        str,
        typer.Option("--format", metavar="NAME", help="csv, json, markdown, latex, parquet, bmf or pytest-benchmark"),
    ] = "csv",
    columns: Annotated[str | None, typer.Option(metavar="LIST", help="Only these columns, in this order.")] = None,
    wide: Annotated[
        bool, typer.Option("--wide", help="One row for each model, a column for each value and resolution.")
    ] = False,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="Where to; default: stdout.")
    ] = None,
    out: Out = "results",
) -> None:
    """Write runs as a table: a row for each cell, failures included, SI units; docs/columns.md tells the columns."""
    from sema_bench.report.formats import FORMATS, RECORD_FORMATS, runs_frame
    from sema_bench.report.latex import to_wide_latex
    from sema_bench.store.files import atomic_write
    from sema_bench.store.load import load_runs

    if format_name not in FORMATS and format_name not in RECORD_FORMATS:
        raise unknown_name("format", format_name, [*FORMATS, *RECORD_FORMATS])
    if format_name in RECORD_FORMATS and (columns or wide):
        raise UsageError(f"{format_name} has a form of its own; drop {'--columns' if columns else '--wide'}")
    if format_name == "parquet" and output is None and sys.stdout.isatty():
        raise UsageError("parquet is no text for a terminal; give -o FILE")
    loaded = load_runs(*runs_to_read(out, runs))
    say_unreadable(loaded)
    content: str | bytes
    if format_name in RECORD_FORMATS:
        content = RECORD_FORMATS[format_name](loaded)
    else:
        names = [name.strip() for name in columns.split(",")] if columns else []
        write = to_wide_latex if wide and format_name == "latex" else FORMATS[format_name]
        content = write(runs_frame(loaded, columns=names, wide=wide))
    if output and output != "-":
        check_output(output)
        atomic_write(Path(output), content)
    elif isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        typer.echo(content, nl=False)
    raise typer.Exit(EXIT_OK)
