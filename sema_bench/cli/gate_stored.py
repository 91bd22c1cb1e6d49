"""``sema-bench gate stored``: compare a run with a stored one."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from sema_bench.cli.gate_options import VerdictOptions
from sema_bench.cli.options import LocalOut
from sema_bench.errors import StoreError, UsageError
from sema_bench.gate.run import GateResult
from sema_bench.gate.stored import judge_stored, machine_difference
from sema_bench.machine.environment import capture
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.run import Run
from sema_bench.spec.suite import GateTable, parse_suite
from sema_bench.spec.units import counted
from sema_bench.store.baselines import load_baseline
from sema_bench.store.files import utc_now
from sema_bench.store.load import load_run, load_runs
from sema_bench.store.stored_run import StoredRun


def gate_stored(
    *,
    baseline: Annotated[
        str, typer.Argument(metavar="BASELINE", help="A baseline, a run, or a JSON file of pytest-benchmark.")
    ],
    head_run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Run to compare with BASELINE; default: measure its suite now.")
    ] = None,
    verdict: VerdictOptions,
    out: LocalOut = Path("results"),
) -> None:
    """Compare a run with a stored one. This tells less than gate run: the machine changes from hour to hour.

    Exit codes: 0 PASS, 1 REGRESSION, 2 wrong usage, 3 INCONCLUSIVE, 4 INCOMPLETE.
    """
    stored = load_baseline(out, baseline)
    _refuse_damaged(stored)
    body = stored.metadata.get("suite")
    try:
        table = GateTable.model_validate((body.get("gate") if isinstance(body, dict) else None) or {})
    except ValidationError as problem:
        raise StoreError(
            f"run.json of {stored.name} has no [gate] that can be read: {problem.errors()[0]['msg']}"
        ) from None
    settings = GateTable(delta=verdict.delta or table.delta, deltas=table.deltas)
    if head_run is None:
        verdict.finish(_measured_now(stored, body, out, settings))
    else:
        (head,) = load_runs(out, [head_run])
        _refuse_damaged(head)
        verdict.finish(judge_stored(stored, head, settings))


def _measured_now(stored: StoredRun, body: object, out: Path, settings: GateTable) -> GateResult:
    """Measure the suite of ``stored``, unless this is another machine, and judge it."""
    if not isinstance(body, dict):
        raise UsageError(f"{stored.name} does not say how it was measured; give --head-run")
    suite = parse_suite(body, source=stored.name)
    here = capture()
    now = StoredRun("now", stored.records, here.hardware, here.software)
    if machine_difference(stored, now):
        typer.echo(f"nothing is measured: this is not the machine of {stored.name}", err=True)
        return judge_stored(stored, now, settings)
    started = time.monotonic()
    name = f"{re.sub('[-:]', '', utc_now())}-gate"
    with stop_on_signals():
        Run.start(suite, root=out, name=name).execute()
    result = judge_stored(stored, load_run(out, name), settings)
    return dataclasses.replace(result, took_s=time.monotonic() - started)


def _refuse_damaged(run: StoredRun) -> None:
    if run.unreadable:
        are_not = "is not a record" if run.unreadable == 1 else "are not records"
        raise StoreError(
            f"{counted(run.unreadable, 'line')} of {run.name} {are_not}, so measured cells are missing; run it again"
        )
