"""``sema-bench selftest``: measure how precise this harness is on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from sema_bench.cli.option_groups import OptionGroup
from sema_bench.cli.options import MachineAxes
from sema_bench.cli.output import check_output, put_out
from sema_bench.driver.device_lock import gpu_lock
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_INCONCLUSIVE,
    EXIT_OK,
    UsageError,
    WorkerError,
)
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.devices import card_of, check_torch_uses, resolve_device
from sema_bench.machine.environment import capture
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.checks import check_suite
from sema_bench.spec.plan import build_plan
from sema_bench.spec.suite import parse_suite
from sema_bench.studies.selftest.report import print_selftest
from sema_bench.studies.selftest.selftest import run_selftest
from sema_bench.text.console import StderrConsole, tell


@dataclass(frozen=True, kw_only=True)
class CopyOptions(OptionGroup):
    """The cell to copy, and how well to measure it."""

    model: Annotated[str, typer.Option(metavar="NAME", help="Model to measure again and again.")] = "sema_tiny"
    res: Annotated[str, typer.Option(metavar="SIZE", help="Resolution of the cell.")] = "224"
    precision: Annotated[
        float, typer.Option(metavar="X", help="Relative half-width of the 95 % interval to reach.")
    ] = 0.01
    copies: Annotated[int, typer.Option(metavar="N", min=3, max=100, help="Number of measurements.")] = 10
    time_limit: Annotated[float, typer.Option(metavar="SECONDS", help="Sample for SECONDS a copy.")] = 3.0


def selftest(
    *,
    copying: CopyOptions,
    axes: MachineAxes,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Prove on a CUDA device that all columns are right: 18 checks, half an hour.")
    ] = False,
    json_path: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write JSON to FILE; - prints JSON instead of the table. With --gpu an existing file is resumed.",
        ),
    ] = None,
) -> None:
    """Measure the harness: how much one cell differs from itself, what measuring costs, whether clocks agree.

    Exits 3 if this machine is too noisy for --precision. With --gpu: exits 1 if a check FAILED, 4 if the half hour was
    too short; the same command resumes.
    """
    if gpu:
        if copying != CopyOptions() or "threads" in axes.changes:
            raise UsageError("selftest --gpu chooses its own cells; it takes only --device and --json")
        _check_card(axes.changes.get("device", "cuda"), json_path)
    body = {
        "name": "selftest",
        "models": [copying.model],
        "res": copying.res,
        "probes": ["throughput", "telemetry"],
        "precision": copying.precision,
        "time_limit_s": copying.time_limit,
        **axes.changes,
    }
    suite = parse_suite(body, source="selftest")
    if suite.device == "meta":
        raise UsageError("selftest times a cell, and device meta runs nothing; use cpu or cuda")
    check_threads(suite.threads or ())
    device = resolve_device(suite.device)
    check_torch_uses(device)
    planned = build_plan(suite, device=device, threads=default_threads(), card=card_of(device))
    if len(planned.cells) != 1:
        raise UsageError("selftest measures one cell: one model, one resolution")
    progress = StderrConsole(stderr=True)
    try:
        with stop_on_signals(), gpu_lock(device):
            result = run_selftest(
                planned.cells[0],
                sampling=planned.sampling,
                copies=copying.copies,
                log=lambda line: progress.print(Text(line, style="dim")),
            )
    except CellFailure as failure:
        raise WorkerError(f"the cell does not run: {failure.status}: {failure.reason}") from None
    put_out(
        lambda console: print_selftest(result, console),
        (json_path, lambda: json.dumps(result.to_json(), indent=2) + "\n"),
    )
    raise typer.Exit(EXIT_OK if result.precise_enough and result.clocks.agree else EXIT_INCONCLUSIVE)


def _check_card(requested: str, json_path: str | None) -> None:
    """Run the checks of a card, print them, and exit."""
    if requested != "cuda" and not requested.startswith("cuda:"):
        raise UsageError(f"selftest --gpu measures a CUDA device; got --device {requested}")
    if json_path:
        check_output(json_path)
    environment = capture()
    device = resolve_device(requested, environment)
    suite = parse_suite({"name": "gpu", "models": ["sema_tiny"], "res": "224"}, source="selftest")
    check_suite(suite, device, card_of(device, environment))
    from sema_bench.studies.gpu import report, run  # loads torch: seconds

    test = run.GpuSelfTest(environment, device, Path(json_path) if json_path and json_path != "-" else None)
    test.resume()
    with stop_on_signals():
        test.run(log=tell, command=run.COMMAND, limit_s=run.LIMIT_S)
    put_out(lambda console: report.print_checks(test, console), ("-" if json_path == "-" else None, test.to_json))
    raise typer.Exit(EXIT_FAILED if test.failed else EXIT_INCOMPLETE if test.missing else EXIT_OK)
