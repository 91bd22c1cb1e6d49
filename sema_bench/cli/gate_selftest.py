"""``sema-bench gate --self-test``: how often the gate is right on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sema_bench.cli.output import put_out
from sema_bench.errors import UsageError

if TYPE_CHECKING:
    from sema_bench.gate.run import GateSettings
    from sema_bench.spec.plan import Plan

LEVELS, LOADS = "0,0.05,0.1,0.2", "alone,busy"


def run_self_test(
    planned: Plan,
    settings: GateSettings,
    repeats: int,
    levels: str,
    loads: str,
    trace: Path | None,
    told: Callable[[str], None],
) -> bool:
    """Run what a trace still lacks of the trials, and print how often each verdict was given.

    Tells whether all is well: it is not where code was convicted that is the same as the base's.

    Raises:
        UsageError: levels or loads that are none, or a trace of something else.
    """
    from sema_bench.gate.report import print_trials
    from sema_bench.gate.rule import REGRESSION
    from sema_bench.gate.selftest import LOADS as KNOWN_LOADS
    from sema_bench.gate.selftest import run_trials
    from sema_bench.gate.trace import append_trial, read_trace

    unknown = [word for word in loads.split(",") if word.strip() not in KNOWN_LOADS]
    if unknown:
        raise UsageError(f"--loads: {unknown[0]!r} is none of {', '.join(KNOWN_LOADS)}")
    trials = read_trace(trace) if trace else []
    wanted = {cell.id: settings.delta_of(cell) for cell in planned.cells}
    if any({name: each.delta for name, each in trial.evidence.items()} != wanted for trial in trials):
        raise UsageError(f"{trace} is of other cells or of another δ; give another file, or what it was begun with")
    found = run_trials(
        planned.cells,
        sampling=planned.sampling,
        settings=settings,
        repeats=repeats,
        loads=[word.strip() for word in loads.split(",")],
        levels=_levels(levels),
        done=trials,
        told=told,
    )
    for trial in found:
        trials.append(trial)
        if trace:
            append_trial(trace, trial)
    put_out(lambda console: print_trials(trials, console))
    return not any(REGRESSION in trial.verdicts.values() for trial in trials if trial.level == 0)


def _levels(text: str) -> list[float]:
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= level <= 1 for level in found):
        raise UsageError(f"--levels takes shares from 0 to 1, as 0,0.05,0.1 for none, 5 % and 10 %; got {text!r}")
    return found
