"""``sema-bench history``: all runs of the results folder, and one cell over time."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.output import put_out, say_unreadable, skipped
from sema_bench.cli.results import Out, folder_to_read
from sema_bench.errors import UsageError
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import check_model


def history(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Follow this model …")] = None,
    res: Annotated[str | None, typer.Option(metavar="SIZE", help="… at this resolution; default: 224.")] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which value to follow; default: latency_s.")
    ] = None,
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Also as CSV; - is stdout, alone.")] = None,
    out: Out = "results",
) -> None:
    """List all runs; with --model follow one cell through them, as a table and a plot in <out>/history/."""
    from sema_bench.report.export import to_csv_text
    from sema_bench.report.history import followed_rows, print_followed, print_runs, write_history_plots
    from sema_bench.store.history import RUN_COLUMNS, columns_of, points_of, read_history, run_rows
    from sema_bench.store.table import rows_frame

    if model is None:
        if metric or res:
            raise UsageError(f"{'--metric' if metric else '--res'} needs --model: which one to follow")
        runs = read_history(folder_to_read(out), on_skip=skipped)
        say_unreadable(runs)
        frame = rows_frame(run_rows(runs), columns=RUN_COLUMNS)
        put_out(lambda console: print_runs(runs, console), path=csv, text=lambda: to_csv_text(frame))
        return
    metric, res = metric or "latency_s", res or "224"
    sizes = parse_resolutions(res)
    if len(sizes) != 1:
        raise UsageError(f"--res: history follows one size; got {len(sizes)} ({res!r})")
    chosen = {"model": check_model(model), "height": sizes[0].height, "width": sizes[0].width}
    folder = folder_to_read(out)
    runs = read_history(folder, columns=columns_of(metric), on_skip=skipped)
    say_unreadable(runs)
    found = points_of(runs, metric, chosen)
    if not found:
        raise UsageError(f"none of the {len(runs)} runs in {out} has {metric} of {model} at {sizes[0].label}")
    put_out(
        lambda console: print_followed(found, metric, console),
        path=csv,
        text=lambda: to_csv_text(rows_frame(followed_rows(found, metric))),
    )
    for path in write_history_plots(found, metric, folder / "history"):
        typer.echo(f"written to {path}", err=True)
