"""``sema-bench plan``: predict the memory, devices and time that a run needs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.options import Csv, Json, Out, PlaceOptions, PlanAxes
from sema_bench.cli.output import check_distinct, put_line, put_out, stdout_if
from sema_bench.cli.results import folder_to_read
from sema_bench.cluster.backends import open_backend
from sema_bench.cluster.placement import expectation, place
from sema_bench.errors import UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.report.plan import outlooks_csv, outlooks_json, print_outlooks, print_placement
from sema_bench.report.progress import ProgressDisplay
from sema_bench.run import checked_plan, plan_on, predict, too_large
from sema_bench.spec.plan import Plan
from sema_bench.spec.suite import Suite, load_suite, override
from sema_bench.spec.target import RunTarget


def plan(
    *,
    suite: Annotated[str | None, typer.Argument(help="A suite file or name; default: scaling.")] = None,
    axes: PlanAxes,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Predict memory (about one second per cell).")
    ] = True,
    csv: Csv = None,
    json: Json = False,
    out: Out = "results",
    where: PlaceOptions,
) -> None:
    """Print the cells of a run with the memory that each needs, and mark those that do not fit on this device.

    Run nothing. With --device meta memory has no limit, so a plan may be larger than this machine. With --executor also
    print which device would run each cell, and how long it would take, judging by earlier runs in the results folder.
    """
    chosen = override(load_suite(suite or "scaling"), axes.changes)
    target = where.target
    check_distinct(csv, stdout_if(json))
    if (csv or json) and (target is not None or not memory):
        other = "--executor shows where they run" if target is not None else "--no-memory predicts none"
        raise UsageError(f"{'--csv' if csv else '--json'} prints the memory of cells, and {other}; drop one")
    with stop_on_signals():
        if target is not None:
            _place(chosen, target, out, memory=memory)
        elif memory:
            _forecast(checked_plan(chosen), csv, json)
        else:
            for cell in checked_plan(chosen).cells:
                put_line(cell.id)


def _place(suite: Suite, target: RunTarget, out: str, *, memory: bool) -> None:
    if target.executor == "slurm":
        raise UsageError("Slurm decides what runs where; plan supports local and ray")
    with contextlib.closing(open_backend(target, root=Path(out), device=suite.device)) as backend:
        planned = plan_on(backend, suite)
        left_out = too_large(planned, planned.cells, backend.environment) if memory else {}
        groups = [left for group in planned.groups if (left := tuple(c for c in group if c not in left_out))]
        expected = expectation(
            planned.cells, folder_to_read(out), backend.environment.fingerprint, on_skip=lambda message: None
        )
        placed = place(groups, backend.lanes, expected)
    put_out(lambda console: print_placement(placed, expected, left_out, console))


def _forecast(planned: Plan, csv: str | None, json: bool) -> None:
    with ProgressDisplay() as progress:
        progress.start(total=len(planned.cells), missing=[planned.cells])
        seen = []
        for outlook in predict(planned):
            progress.phase(outlook.cell, "predicting")
            seen.append(outlook)
            progress.finished(outlook.record)
    put_out(
        lambda console: print_outlooks(seen, console),
        (csv, lambda: outlooks_csv(seen)),
        (stdout_if(json), lambda: outlooks_json(seen)),
    )
