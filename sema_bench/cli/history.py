"""``sema-bench history``: list all runs of the results folder, or follow one cell through them."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.option_values import one_size
from sema_bench.cli.options import Csv, Json, Out
from sema_bench.cli.output import check_distinct, put_out, stdout_if
from sema_bench.cli.results import folder_to_read, warn_skipped, warn_unreadable
from sema_bench.errors import UsageError
from sema_bench.report.export import to_csv_text
from sema_bench.report.formats import to_json
from sema_bench.report.history import followed_rows, print_followed, print_runs, write_history_plots
from sema_bench.spec.cell import check_model
from sema_bench.store.history import RUN_COLUMNS, columns_of, points_of, read_history, run_rows
from sema_bench.store.table import rows_frame


def history(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Follow one cell of this model.")] = None,
    res: Annotated[str | None, typer.Option(metavar="SIZE", help="Resolution of that cell; default: 224.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Value to follow; default: latency_s.")] = None,
    csv: Csv = None,
    json: Json = False,
    out: Out = "results",
) -> None:
    """List all runs; with --model follow one cell through them, as a table and a plot in <out>/history/."""
    check_distinct(csv, stdout_if(json))
    if model is None:
        if metric or res:
            raise UsageError(f"{'--metric' if metric else '--res'} needs --model: the model to follow")
        runs = read_history(folder_to_read(out), on_skip=warn_skipped)
        warn_unreadable(*runs)
        frame = rows_frame(run_rows(runs), columns=RUN_COLUMNS)
        put_out(
            lambda console: print_runs(runs, console),
            (csv, lambda: to_csv_text(frame)),
            (stdout_if(json), lambda: to_json(frame)),
        )
        return
    name, size = metric or "latency_s", one_size(res or "224", "history takes one size")
    chosen = {"model": check_model(model), "height": size.height, "width": size.width}
    folder = folder_to_read(out)
    runs = read_history(folder, columns=columns_of(name), on_skip=warn_skipped)
    warn_unreadable(*runs)
    points = points_of(runs, name, chosen)
    if not points:
        raise UsageError(f"none of the {len(runs)} runs in {out} has {name} of {model} at {size.label}")
    frame = rows_frame(followed_rows(points, name))
    put_out(
        lambda console: print_followed(points, name, console),
        (csv, lambda: to_csv_text(frame)),
        (stdout_if(json), lambda: to_json(frame)),
    )
    for path in write_history_plots(points, name, folder / "history"):
        typer.echo(f"written to {path}", err=True)
