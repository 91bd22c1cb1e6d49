"""``sema-bench plan``: what a run would need, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sema.model_name import split_model_names
from sema_bench.cli.measure import (
    Batch,
    Device,
    DType,
    Layout,
    Mode,
    Models,
    Res,
    batches,
    choices,
    modes,
    suite_with,
)
from sema_bench.errors import EXIT_OK
from sema_bench.interrupts import stop_on_signals
from sema_bench.schema import DTYPES, LAYOUTS
from sema_bench.suite import check_model


def plan(
    suite: Annotated[str | None, typer.Argument(help="A suite file or name; default: scaling.")] = None,
    res: Res = None,
    models: Models = None,
    device: Device = None,
    batch: Batch = None,
    dtype: DType = None,
    layout: Layout = None,
    mode: Mode = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Predict memory (about a second a cell).")
    ] = True,
    csv: Annotated[str | None, typer.Option(metavar="PATH", help="Also write a CSV; - is stdout, alone.")] = None,
) -> None:
    """Print the cells of a run with the memory that each will need, and mark those that do not fit on this device.

    Nothing is run. On --device meta there is no limit: a look beyond this machine.
    """
    changes: dict[str, Any] = {
        "res": res,
        "models": [check_model(name) for name in split_model_names(models)] if models is not None else None,
        "device": device,
        "batch": batches(batch),
        "dtype": choices("dtype", dtype, DTYPES),
        "layout": choices("layout", layout, LAYOUTS),
        **modes(mode),
    }
    chosen = suite_with(suite or "scaling", {key: value for key, value in changes.items() if value is not None})
    from sema_bench.experiment import plan_without_torch

    planned = plan_without_torch(chosen)
    if not memory:
        for cell in planned.cells:
            typer.echo(cell.id)
        raise typer.Exit(EXIT_OK)
    with stop_on_signals():
        _forecast(planned, csv)


def _forecast(planned: Any, csv: str | None) -> None:
    from rich.console import Console

    from sema_bench.capacity import outlooks
    from sema_bench.progress import ProgressDisplay
    from sema_bench.report.plan import outlooks_csv, print_outlooks
    from sema_bench.store import atomic_write

    with ProgressDisplay(timed=False) as progress:
        progress.start(total=len(planned.cells), missing=planned.cells)
        seen = []
        for outlook in outlooks(planned, told=lambda cell: progress.phase(cell, "predicting")):
            seen.append(outlook)
            progress.finished(outlook.record)
    if csv == "-":
        typer.echo(outlooks_csv(seen), nl=False)
        return
    if csv:
        atomic_write(Path(csv), outlooks_csv(seen))
    console = Console(highlight=False)
    with console.capture() as capture:
        print_outlooks(seen, console)
    typer.echo(capture.get(), nl=False)
