"""``sema-bench plan``: what a run would need, before it runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from sema_bench.cli.measure import (
    Allocator,
    Batch,
    Checkpointing,
    Device,
    Devices,
    DType,
    Executor,
    Layout,
    Mode,
    Models,
    RayAddress,
    Res,
    Sdpa,
    Tf32,
    Threads,
    suite_with,
)
from sema_bench.cli.option_values import common_axes, where_from
from sema_bench.cli.output import put_line, put_out
from sema_bench.cli.results import Out, folder_to_read
from sema_bench.errors import EXIT_OK, UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.suite import Suite
from sema_bench.spec.target import RunTarget


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
    executor: Executor = None,
    devices: Devices = None,
    ray_address: RayAddress = None,
    out: Out = "results",
) -> None:
    """Print the cells of a run with the memory that each will need, and mark those that do not fit on this device.

    Nothing is run. On --device meta there is no limit: a look beyond this machine. With --executor also what would
    run where, and how long it should take by the earlier runs in the results folder.
    """
    changes = common_axes(
        res, models, device, batch, dtype, tf32, layout, mode, checkpointing, sdpa, allocator, threads
    )
    chosen = suite_with(suite or "scaling", {key: value for key, value in changes.items() if value is not None})
    target = where_from(executor, devices, ray_address)
    if target is not None:
        if csv is not None:
            raise UsageError("--csv is of the cells' memory, and --executor shows where they run; drop one")
        with stop_on_signals():
            _place(chosen, target, out, memory=memory)
        raise typer.Exit(EXIT_OK)
    from sema_bench.run import checked_plan

    planned = checked_plan(chosen)
    if not memory:
        if csv is not None:
            raise UsageError("--csv is of the cells' memory, and --no-memory predicts none; drop one")
        for cell in planned.cells:
            put_line(cell.id)
        raise typer.Exit(EXIT_OK)
    with stop_on_signals():
        _forecast(planned, csv)


def _place(suite: Suite, target: RunTarget, out: str, *, memory: bool) -> None:
    from sema_bench.cluster.backends import open_backend
    from sema_bench.cluster.placement import expectation, place
    from sema_bench.report.placement import print_placement
    from sema_bench.run import plan_for, room_of, without_room
    from sema_bench.text.console import tell, warn

    if target.executor == "slurm":
        raise UsageError("Slurm decides itself what runs where; plan shows local and ray")
    with contextlib.closing(open_backend(target, root=Path(out), device=suite.device, warn=warn, said=tell)) as backend:
        planned = plan_for(suite, backend)
        room = room_of(backend, planned)
        left_out = without_room(planned, planned.cells, room) if memory else {}
        groups = [kept for group in planned.groups if (kept := tuple(c for c in group if c not in left_out))]
        expected = expectation(
            planned.cells, folder_to_read(out), backend.environment.fingerprint, on_skip=lambda message: None
        )
        placed = place(groups, backend.lanes, expected)
    put_out(lambda console: print_placement(placed, expected, left_out, console))


def _forecast(planned: Any, csv: str | None) -> None:
    from sema_bench.driver.memory_fit import outlooks
    from sema_bench.report.plan import outlooks_csv, print_outlooks
    from sema_bench.report.progress import ProgressDisplay

    with ProgressDisplay(timed=False) as progress:
        progress.start(total=len(planned.cells), missing=planned.cells)
        seen = []
        for outlook in outlooks(planned, told=lambda cell: progress.phase(cell, "predicting")):
            seen.append(outlook)
            progress.finished(outlook.record)
    put_out(lambda console: print_outlooks(seen, console), path=csv, text=lambda: outlooks_csv(seen))
