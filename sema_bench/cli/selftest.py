"""``sema-bench selftest``: measure how precise this harness is on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.text import Text

from sema_bench.cli.options import MachineAxes
from sema_bench.cli.output import put_out
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import EXIT_INCONCLUSIVE, EXIT_OK, UsageError, WorkerError
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.devices import resolve_device
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.plan import build_plan
from sema_bench.spec.suite import parse_suite
from sema_bench.studies.selftest.report import print_selftest
from sema_bench.studies.selftest.selftest import run_selftest
from sema_bench.text.console import StderrConsole


def selftest(
    *,
    model: Annotated[str, typer.Option(metavar="NAME", help="Model to measure again and again.")] = "sema_tiny",
    res: Annotated[str, typer.Option(metavar="SIZE", help="Resolution of the cell.")] = "224",
    axes: MachineAxes,
    precision: Annotated[
        float, typer.Option(metavar="X", help="Relative half-width of the 95 % interval to reach.")
    ] = 0.01,
    copies: Annotated[int, typer.Option(metavar="N", min=3, max=100, help="Number of measurements.")] = 10,
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="Sample each copy for at most SECONDS.")] = 3.0,
    json_path: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - prints JSON in place of the table."),
    ] = None,
) -> None:
    """Measure the harness: spread of one cell against itself, cost outside timed samples, agreement of clocks.

    Exits 3 if this machine is too noisy for --precision.
    """
    body = {
        "name": "selftest",
        "models": [model],
        "res": res,
        "probes": ["throughput", "telemetry"],
        "precision": precision,
        "time_limit_s": time_limit,
        **axes.changes,
    }
    suite = parse_suite(body, source="selftest")
    if suite.device == "meta":
        raise UsageError("selftest times a cell, and device meta runs nothing; use cpu or cuda")
    check_threads(suite.threads or ())
    planned = build_plan(suite, device=resolve_device(suite.device), threads=default_threads())
    if len(planned.cells) != 1:
        raise UsageError("selftest measures one cell: one model, one resolution")
    progress = StderrConsole(stderr=True)
    try:
        with stop_on_signals():
            result = run_selftest(
                planned.cells[0],
                sampling=planned.sampling,
                copies=copies,
                log=lambda line: progress.print(Text(line, style="dim")),
            )
    except CellFailure as failure:
        raise WorkerError(f"the cell does not run: {failure.status}: {failure.reason}") from None
    put_out(
        lambda console: print_selftest(result, console),
        (json_path, lambda: json.dumps(result.to_json(), indent=2) + "\n"),
    )
    raise typer.Exit(EXIT_OK if result.precise_enough and result.clocks.agree else EXIT_INCONCLUSIVE)
