"""``sema-bench export``: write runs as a table for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.option_values import items
from sema_bench.cli.options import Out
from sema_bench.cli.output import check_output
from sema_bench.cli.results import read_runs
from sema_bench.errors import UsageError, unknown_name
from sema_bench.report.export import to_wide_latex
from sema_bench.report.formats import FORMATS, RECORD_FORMATS, runs_frame
from sema_bench.store.files import atomic_write


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
        str, typer.Option("-o", "--output", metavar="FILE", help="Write to FILE; default: stdout.")
    ] = "-",
    out: Out = "results",
) -> None:
    """Write runs as a table: a row for each cell, failures included, in SI units."""
    if format_name not in FORMATS and format_name not in RECORD_FORMATS:
        raise unknown_name("format", format_name, [*FORMATS, *RECORD_FORMATS])
    if format_name in RECORD_FORMATS and (columns or wide):
        raise UsageError(f"{format_name} has fixed contents; drop {'--columns' if columns else '--wide'}")
    if format_name == "parquet" and output == "-" and sys.stdout.isatty():
        raise UsageError("parquet is not text; give -o FILE")
    loaded = read_runs(out, runs)
    content: str | bytes
    if format_name in RECORD_FORMATS:
        content = RECORD_FORMATS[format_name](loaded)
    else:
        write = to_wide_latex if wide and format_name == "latex" else FORMATS[format_name]
        content = write(runs_frame(loaded, columns=items(columns) if columns else (), wide=wide))
    if output != "-":
        check_output(output)
        atomic_write(Path(output), content)
    elif isinstance(content, bytes):
        sys.stdout.buffer.write(content)
    else:
        typer.echo(content, nl=False)
