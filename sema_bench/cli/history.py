"""``sema-bench history``: all runs of the results folder, and one cell over time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sema_bench.axes import parse_resolutions
from sema_bench.cli.output import put_out
from sema_bench.errors import UsageError
from sema_bench.suite import check_model


def history(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Follow this model …")] = None,
    res: Annotated[str, typer.Option(metavar="SIZE", help="… at this resolution.")] = "224",
    metric: Annotated[str, typer.Option(metavar="NAME", help="Which value to follow.")] = "latency_s",
    csv: Annotated[str | None, typer.Option(metavar="FILE", help="Also as CSV; - is stdout, alone.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Results folder.")] = Path("results"),
) -> None:
    """List all runs; with --model follow one cell through them, as a table and a plot in <out>/history/."""
    from sema_bench.history import columns_of, points_of, read_history, run_rows
    from sema_bench.report.export import rows_frame, to_csv_text
    from sema_bench.report.history import followed_rows, print_followed, print_runs, write_history_plots

    if model is None:
        runs = read_history(out)
        rows = list(run_rows(runs))
        put_out(lambda console: print_runs(runs, console), path=csv, text=lambda: to_csv_text(rows_frame(rows)))
        return
    sizes = parse_resolutions(res)
    if len(sizes) != 1:
        raise UsageError(f"--res: history follows one size; got {len(sizes)} ({res!r})")
    chosen = {"model": check_model(model), "height": sizes[0].height, "width": sizes[0].width}
    runs = read_history(out, columns=columns_of(metric))
    found = points_of(runs, metric, chosen)
    if not found:
        raise UsageError(f"none of the {len(runs)} runs in {out} has {metric} of {model} at {sizes[0].label}")
    put_out(
        lambda console: print_followed(found, metric, console),
        path=csv,
        text=lambda: to_csv_text(rows_frame(followed_rows(found, metric))),
    )
    for path in write_history_plots(found, metric, out / "history"):
        typer.echo(f"written to {path}", err=True)
