"""``sema-bench plan``: what a run would need, before it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sema_bench.cli.measure import (
    Allocator,
    Batch,
    Checkpointing,
    Device,
    DType,
    Layout,
    Mode,
    Models,
    Res,
    Sdpa,
    Tf32,
    Threads,
    common_axes,
    suite_with,
)
from sema_bench.cli.output import put_out
from sema_bench.errors import EXIT_OK
from sema_bench.interrupts import stop_on_signals


def plan(
    suite: Annotated[str | None, typer.Argument(help="A suite file or name; default: scaling.")] = None,
    res: Res = None,
    models: Models = None,
    device: Device = None,
    batch: Batch = None,
    dtype: DType = None,
    tf32: Tf32 = None,
    layout: Layout = None,
    mode: Mode = None,
    checkpointing: Checkpointing = None,
    sdpa: Sdpa = None,
    allocator: Allocator = None,
    threads: Threads = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Predict memory (about a second a cell).")
    ] = True,
    csv: Annotated[str | None, typer.Option(metavar="PATH", help="Also write a CSV; - is stdout, alone.")] = None,
) -> None:
    """Print the cells of a run with the memory that each will need, and mark those that do not fit on this device.

    Nothing is run. On --device meta there is no limit: a look beyond this machine.
    """
    changes = common_axes(
        res, models, device, batch, dtype, tf32, layout, mode, checkpointing, sdpa, allocator, threads
    )
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
    from sema_bench.capacity import outlooks
    from sema_bench.progress import ProgressDisplay
    from sema_bench.report.plan import outlooks_csv, print_outlooks

    with ProgressDisplay(timed=False) as progress:
        progress.start(total=len(planned.cells), missing=planned.cells)
        seen = []
        for outlook in outlooks(planned, told=lambda cell: progress.phase(cell, "predicting")):
            seen.append(outlook)
            progress.finished(outlook.record)
    put_out(lambda console: print_outlooks(seen, console), path=csv, text=lambda: outlooks_csv(seen))
