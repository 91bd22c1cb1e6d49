"""``sema-bench selftest``: how precise is this harness on this machine?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sema_bench.cli.output import put_out
from sema_bench.errors import EXIT_INCONCLUSIVE, EXIT_OK, UsageError, WorkerError
from sema_bench.machine.interrupts import stop_on_signals


def selftest(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The cell to measure again and again …")] = (
        "sema_tiny"
    ),
    res: Annotated[str, typer.Option("--res", metavar="SIZE", help="… at this resolution …")] = "224",
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="… on auto, cpu or cuda:<index>.")] = "auto",
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", help="Intra-op threads.")] = None,
    precision: Annotated[
        float, typer.Option("--precision", metavar="X", help="Precision asked for: 95 % half-width, relative.")
    ] = 0.01,
    copies: Annotated[int, typer.Option("--copies", metavar="N", min=3, max=100, help="How many times.")] = 10,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Sampling time of one copy at most.")
    ] = 3.0,
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Also as JSON; - is stdout, alone.")
    ] = None,
) -> None:
    """Measure the harness: spread of one cell against itself, cost outside timed samples, agreement of clocks.

    Exit code 3 if this machine is too noisy for the precision asked for.
    """
    from sema_bench.machine.cpus import check_threads, default_threads
    from sema_bench.machine.devices import resolve_device
    from sema_bench.spec.plan import build_plan
    from sema_bench.spec.suite import parse_suite

    if device == "meta":
        raise UsageError("selftest times a cell, and device meta runs nothing; use cpu or cuda")
    body = {"models": [model], "res": res, "device": device, "precision": precision, "time_limit_s": time_limit}
    if threads is not None:
        body["threads"] = [threads]
    words = {"name": "selftest", "claim": "", "cost": "", "probes": ["throughput", "telemetry"]}
    suite = parse_suite({**body, **words}, source="selftest")
    check_threads(suite.threads or ())
    planned = build_plan(suite, device=resolve_device(device), threads=default_threads())
    if len(planned.cells) != 1:
        raise UsageError("selftest measures one cell: one model, one resolution")
    with stop_on_signals():
        code = _measure(planned, copies, json_path)
    raise typer.Exit(code)


def _measure(planned: object, copies: int, json_path: str | None) -> int:
    from rich.text import Text

    from sema_bench.driver.worker_process import CellFailure
    from sema_bench.spec.plan import Plan
    from sema_bench.studies.selftest.report import print_selftest
    from sema_bench.studies.selftest.selftest import run_selftest
    from sema_bench.text.console import StderrConsole

    assert isinstance(planned, Plan)
    progress = StderrConsole(stderr=True)
    try:
        found = run_selftest(
            planned.cells[0],
            sampling=planned.sampling,
            copies=copies,
            told=lambda line: progress.print(Text(line, style="dim")),
        )
    except CellFailure as failure:
        raise WorkerError(f"the cell does not run: {failure.status}: {failure.reason}") from None
    put_out(
        lambda console: print_selftest(found, console),
        path=json_path,
        text=lambda: json.dumps(found.to_json(), indent=2) + "\n",
    )
    return EXIT_OK if found.precise_enough and found.clocks.agree else EXIT_INCONCLUSIVE
