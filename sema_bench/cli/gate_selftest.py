"""``sema-bench gate selftest``: measure how often the gate is right on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.gate_options import CellOptions, Delta, plan_of, show_progress
from sema_bench.cli.option_values import numbers
from sema_bench.cli.output import put_out
from sema_bench.errors import EXIT_FAILED, EXIT_OK, UsageError
from sema_bench.gate.report import print_trials
from sema_bench.gate.rule import REGRESSION
from sema_bench.gate.selftest import LEVELS, LOADS, missing_trials, run_trials
from sema_bench.gate.suites import settings_of, suite_of_the_repository
from sema_bench.gate.trace import append_trial, read_trace
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.suite import GateTable, load_suite

_LEVELS = ",".join(f"{level:g}" for level in LEVELS)
_SHARES = "shares from 0 to 1, such as 0,0.05,0.1 for none, 5 % and 10 %"


def gate_selftest(
    *,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Run N gates at each slowdown under each load.")
    ] = 5,
    cells: CellOptions,
    delta: Delta = None,
    levels: Annotated[str, typer.Option(metavar="LIST", help="Slowdowns of the head, as shares.")] = _LEVELS,
    loads: Annotated[str, typer.Option(metavar="LIST", help="Loads on the machine during the gates.")] = ",".join(
        LOADS
    ),
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append the evidence to FILE; an existing file is resumed.")
    ] = None,
) -> None:
    """Gate this code against itself and against known slowdowns; print how often each verdict is given.

    Exits 1 if the same code is ever called a regression.
    """
    suite = cells.choose(load_suite(cells.suite or suite_of_the_repository()))
    plan = plan_of(suite)
    settings = settings_of(suite.gate or GateTable(), plan, delta=delta, budget_s=cells.budget_s, some=cells.some)
    trials = read_trace(trace) if trace else []
    wanted = {cell.id: settings.delta_of(cell) for cell in plan.cells}
    if any({name: each.delta for name, each in trial.evidence.items()} != wanted for trial in trials):
        raise UsageError(f"{trace} holds trials of other cells or another δ; use another file, or its cells and δ")
    slowdowns = numbers("--levels", levels, takes=_SHARES, check=lambda xs: all(0 <= x <= 1 for x in xs))
    with stop_on_signals(), show_progress() as log:
        missing = missing_trials(repeats, _loads(loads), slowdowns, trials)
        for trial in run_trials(plan.cells, missing, sampling=plan.sampling, settings=settings, log=log):
            trials.append(trial)
            if trace:
                append_trial(trace, trial)
    put_out(lambda console: print_trials(trials, console))
    is_wrong = any(trial.level == 0 and REGRESSION in trial.verdicts.values() for trial in trials)
    raise typer.Exit(EXIT_FAILED if is_wrong else EXIT_OK)


def _loads(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if unknown := [word for word in words if word not in LOADS]:
        raise UsageError(f"--loads: {unknown[0]!r} is not one of {', '.join(LOADS)}")
    return words
