"""Run a suite for ``scale``, ``run`` and ``evaluate``: new, resumed, or as a list of its cells."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import typer

from sema_bench.cli.options import RunOptions
from sema_bench.cli.output import put_line, put_out
from sema_bench.cli.results import remote_results
from sema_bench.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_OK, UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.report.table import render
from sema_bench.run import Run, checked_plan
from sema_bench.spec.record import Record
from sema_bench.spec.suite import Suite
from sema_bench.spec.target import RunTarget
from sema_bench.spec.units import counted
from sema_bench.store.run_folder import command_in
from sema_bench.text.console import tell


def run_new(suite: Suite, options: RunOptions, target: RunTarget | None) -> None:
    """Run ``suite`` into a new folder, or print its cells for ``--dry-run``."""
    if options.retry_failed:
        raise UsageError("--retry-failed needs --resume RUN")
    if not options.dry_run:
        start_run(suite, options, target)
    if options.run is not None:
        raise UsageError("--run names a folder, and --dry-run makes none; drop one of them")
    if target is not None or options.no_skip:
        option = "--executor" if target is not None else "--no-skip"
        raise UsageError(
            f"--dry-run prints the cells and runs none; drop {option} (sema-bench plan --executor places them)"
        )
    plan = checked_plan(suite)
    for cell in plan.cells:
        put_line(cell.id)
    cells, groups = counted(len(plan.cells), "cell"), counted(len(plan.groups), "group")
    limit = f"{plan.sampling.time_limit_s:g} s of sampling per cell, on average at most"
    typer.echo(f"{cells} in {groups}; probes: {', '.join(plan.probes)}; {limit}", err=True)


def start_run(suite: Suite, options: RunOptions, target: RunTarget | None = None) -> NoReturn:
    """Run ``suite`` into a new folder, print its tables and exit."""
    with stop_on_signals():
        remote = remote_results(options.out)
        run = Run.start(suite, target or RunTarget(), root=Path(options.out), name=options.run, remote=remote)
        records = run.execute(skip=not options.no_skip)
    _finish(run, records, options)


def resume_run(name: str, options: RunOptions, target: RunTarget | None, *, given: Iterable[str]) -> NoReturn:
    """Measure what the run ``name`` still lacks, print its tables and exit.

    With a ``target`` of None it continues on the same machines. Any options ``given`` are refused: the run has a plan.
    """
    ignored = [*given, *(["--run"] if options.run else []), *(["--dry-run"] if options.dry_run else [])]
    if ignored:
        raise UsageError(
            f"--resume continues a run with the plan it was started with; drop {ignored[0]}, or start a new run with it"
        )
    with stop_on_signals():
        run = Run.resume(name, root=Path(options.out), target=target, remote=remote_results(options.out))
        records = run.execute(skip=not options.no_skip, retry_failed=options.retry_failed)
    _finish(run, records, options)


def _finish(run: Run, records: list[Record], options: RunOptions) -> NoReturn:
    put_out(lambda console: render(records, console, details=options.details))
    if not options.details:
        tell(f"memory, MACs, exponents: {command_in(options.out, 'show', run.folder.name, '--details')}")
    statuses = {record.status for record in records}
    failed = not statuses.isdisjoint(("error", "crashed"))
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK if "ok" in statuses else EXIT_INCOMPLETE)
