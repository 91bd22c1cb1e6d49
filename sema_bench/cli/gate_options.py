"""Declare the options of the ``gate`` commands, and print their verdicts."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

import typer
from rich.status import Status
from rich.text import Text

from sema_bench.cli.option_groups import OptionGroup
from sema_bench.cli.option_values import given
from sema_bench.cli.output import check_distinct, put_out
from sema_bench.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_INCONCLUSIVE, EXIT_OK, UsageError
from sema_bench.gate.ci import gate_junit, github_annotations, write_step_summary
from sema_bench.gate.report import gate_markdown, print_gate
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION
from sema_bench.gate.run import GateResult, result_to_json
from sema_bench.gate.suites import planned
from sema_bench.machine.cpus import check_threads
from sema_bench.machine.devices import check_torch_uses
from sema_bench.spec.model_source import split_models
from sema_bench.spec.plan import Plan
from sema_bench.spec.suite import Suite, override
from sema_bench.text.console import StderrConsole

_CODES = {PASS: EXIT_OK, REGRESSION: EXIT_FAILED, INCONCLUSIVE: EXIT_INCONCLUSIVE, INCOMPLETE: EXIT_INCOMPLETE}


class OnInconclusive(str, Enum):
    """Exit code of a gate that cannot tell: 3, or 0 with a warning."""

    fail = "fail"
    warn = "warn"


def _checked_delta(text: str | float) -> float:
    with contextlib.suppress(ValueError):
        if 0.005 <= (delta := float(text)) <= 1:
            return delta
    raise UsageError(f"--delta takes a share from 0.005 to 1, such as 0.03 for 3 %; got {text}")


Delta = Annotated[
    float | None,
    typer.Option(
        "--delta",
        metavar="SHARE",
        parser=_checked_delta,
        help="Smallest slowdown to refuse; default: that of the suite, or 0.03 (3 %).",
    ),
]


@dataclass(frozen=True, kw_only=True)
class CellOptions(OptionGroup):
    """Options that choose the cells of a gate and limit its time."""

    suite: Annotated[str | None, typer.Option(metavar="SUITE", help="Cells to gate; default: suites/gate.toml.")] = None
    models: Annotated[
        str | None, typer.Option(metavar="LIST", help="Gate only these models; default: all of the suite.")
    ] = None
    res: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Gate only these sizes; default: all of the suite.")
    ] = None
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu or cuda:<index>.")] = None
    budget_s: Annotated[
        float | None,
        typer.Option(
            "--budget-s",
            metavar="SECONDS",
            min=1,
            help="Start no batch after SECONDS; default: that of the suite, or no limit.",
        ),
    ] = None

    def choose(self, suite: Suite) -> Suite:
        """Apply the options to ``suite``."""
        models = split_models(self.models) if self.models is not None else None
        return override(suite, given(models=models, res=self.res, device=self.device))

    @property
    def some(self) -> bool:
        """True if the options may leave out cells of the suite."""
        return bool(self.models or self.res)


@dataclass(frozen=True, kw_only=True)
class VerdictOptions(OptionGroup):
    """Options of a gate's decision and verdict."""

    delta: Delta = None
    on_inconclusive: Annotated[
        OnInconclusive, typer.Option(help="Exit with 3 if the gate cannot tell, or with 0 and a warning.")
    ] = OnInconclusive.fail
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Write verdicts and evidence to FILE.")] = None
    markdown: Annotated[str | None, typer.Option(metavar="FILE", help="Write a comment for the change.")] = None
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Write JUnit XML.")] = None

    def __post_init__(self) -> None:
        check_distinct(self.json, self.markdown, self.junit)

    def finish(self, result: GateResult) -> None:
        """Print and write the verdicts, and exit with their code."""
        put_out(
            lambda console: print_gate(result, console),
            (self.json, lambda: json.dumps(result_to_json(result), indent=1) + "\n"),
            (self.markdown, lambda: gate_markdown(result)),
            (self.junit, lambda: gate_junit(result)),
        )
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in github_annotations(result):
                typer.echo(line, err="-" in (self.json, self.markdown, self.junit))
            write_step_summary(result)
        if result.verdict == INCONCLUSIVE and self.on_inconclusive is OnInconclusive.warn:
            typer.echo("warning: the gate is INCONCLUSIVE, and passes because of --on-inconclusive warn", err=True)
            raise typer.Exit(EXIT_OK)
        raise typer.Exit(_CODES[result.verdict])


def plan_of(suite: Suite) -> Plan:
    """Plan the cells of ``suite`` on this machine."""
    check_threads(suite.threads or ())
    plan = planned(suite)
    check_torch_uses(plan.cells[0].device)
    if any(cell.batch_policy == "max" for cell in plan.cells):
        raise UsageError("both sides of a gate must do the same work; set batch to a number in the suite, not max")
    return plan


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[str], None]]:
    """Show the lines that the body reports: in place on a terminal; elsewhere one per batch, one with the time left."""
    console = StderrConsole(stderr=True)
    if console.is_terminal:
        with Status("", console=console) as status:
            yield lambda line: status.update(Text(line, no_wrap=True, overflow="ellipsis"))
        return
    before = ("", False)

    def report(line: str) -> None:
        nonlocal before
        part, left = line, ""
        if "batch" in line:
            part, _, cell = line.partition(": ")
            left = cell.partition("; ")[2]
        if (part, bool(left)) != before:
            typer.echo(f"{part}; {left}" if left else part, err=True)
        before = (part, bool(left))

    yield report
