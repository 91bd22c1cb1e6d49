"""``sema-bench gate run``: measure whether a change of code made a model slower."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.gate_options import CellOptions, VerdictOptions, plan_of, show_progress
from sema_bench.cli.option_groups import OptionGroup
from sema_bench.driver.device_lock import gpu_lock
from sema_bench.errors import UsageError
from sema_bench.gate.arms import Arm, arm_of_python, arms_of_refs, check_arms, is_dirty, with_compiler_caches
from sema_bench.gate.run import Gate
from sema_bench.gate.suites import gated_by_arms, settings_of, suite_of_the_repository
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.suite import load_suite


@dataclass(frozen=True, kw_only=True)
class ArmOptions(OptionGroup):
    """The two states of the code."""

    base: Annotated[str | None, typer.Option(metavar="REF", help="Git ref of the base, e.g. origin/main.")] = None
    head: Annotated[
        str | None, typer.Option(metavar="REF", help="Git ref of the head; default: the working tree as it is.")
    ] = None
    base_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter with the base installed, instead of --base.")
    ] = None
    head_python: Annotated[str | None, typer.Option(metavar="PYTHON", help="Interpreter with the head installed.")] = (
        None
    )


def gate_run(*, arms: ArmOptions, cells: CellOptions, verdict: VerdictOptions) -> None:
    """Compare two states of the code side by side; fail if, and only if, a model became slower.

    Exit codes: 0 PASS, 1 REGRESSION, 2 wrong usage, 3 INCONCLUSIVE, 4 INCOMPLETE.
    """
    path = cells.suite or suite_of_the_repository()
    plan_of(cells.choose(load_suite(path)))  # refuse a wrong request before anything is checked out
    with stop_on_signals(), _opened(arms) as (base, head), show_progress() as log:
        gated = gated_by_arms(path, (base, head), cells.choose, ref=arms.head, own_delta=verdict.delta is not None)
        settings = settings_of(gated.table, gated.plan, delta=verdict.delta, budget_s=cells.budget_s, some=cells.some)
        check_arms((base, head), gated.plan.cells[0], log)
        for note in gated.notes:
            typer.echo(note, err=True)
        gate = Gate(
            base,
            head,
            gated.plan.cells,
            sampling=gated.plan.sampling,
            settings=settings,
            log=log,
            vanished=gated.vanished,
        )
        with gpu_lock(gated.plan.cells[0].device):
            result = gate.run()
    verdict.finish(result)


@contextlib.contextmanager
def _opened(options: ArmOptions) -> Iterator[list[Arm]]:
    if options.base_python or options.head_python:
        if options.base or options.head or not (options.base_python and options.head_python):
            raise UsageError("give either --base REF, or both --base-python and --head-python")
        pair = [arm_of_python("base", options.base_python), arm_of_python("head", options.head_python)]
        with with_compiler_caches(pair) as arms:
            yield arms
        return
    if not options.base:
        raise UsageError("the base is missing; give --base REF, e.g. --base origin/main, or --base-python")
    here, head = Path(), options.head
    if head and is_dirty(here):
        typer.echo(f"the working tree has uncommitted changes; the head is {head} without them", err=True)
    with arms_of_refs(here, options.base, head) as refs, with_compiler_caches(refs) as arms:
        yield arms
