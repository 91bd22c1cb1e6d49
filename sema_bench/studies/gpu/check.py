"""A check of the card: what it measures, and what it must find.

A check has two halves. ``measure`` runs on the card, in a separate process, and returns plain JSON: its answers.
``judge`` turns answers into findings and needs no card. So a file of recorded answers replays a card, and a limit that
was wrong can be judged again without measuring.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.worker_process import WorkerProcess
from sema_bench.machine.cpus import default_threads
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.protocol import Inspect, WorkloadSpec

Item = TypeVar("Item")
#: What a check measured, as JSON has it.
Answers = Mapping[str, Any]

#: Precision → the axes of its cells.
PRECISIONS: dict[str, dict[str, Any]] = {"float32": {}, "TF32": {"tf32": True}, "bfloat16": {"dtype": "bfloat16"}}
OK, FAILED, NOT_HERE = "ok", "FAILED", "not here"


class NotHereError(Exception):
    """This card, or this installation, lacks what a check needs."""


@dataclass(frozen=True)
class Finding:
    """One figure of a check; ``ok`` is None if it is reported and not judged."""

    name: str
    figure: str
    limit: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class Check:
    """One check; ``minutes`` is what it is expected to take on a data-centre card."""

    number: int
    name: str
    proves: str
    minutes: float
    measure: Callable[[Card], dict[str, Any]]
    judge: Callable[[Answers], Iterable[Finding]]


@dataclass(frozen=True)
class Outcome:
    """The end of one check; ``reason`` says why it is ``not here``, or why it broke."""

    status: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    answers: Answers = field(default_factory=dict)
    traceback: str = ""


def judged(check: Check, answers: Answers, *, seconds: float = 0.0) -> Outcome:
    """Judge the answers of a check; answers that lack a key make it FAILED."""
    try:
        findings = tuple(check.judge(answers))
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError) as problem:
        reason = f"its answers cannot be judged: {type(problem).__name__}: {problem}"
        return Outcome(FAILED, (), reason, seconds, answers)
    verdicts = {finding.ok for finding in findings}
    if False in verdicts:
        status = FAILED
    elif True in verdicts:
        status = OK
    else:
        return Outcome(NOT_HERE, findings, "the card reports nothing to judge", seconds, answers)
    return Outcome(status, findings, "", seconds, answers)


def stated(name: str, value: object) -> Finding:
    """Report a figure without judging it."""
    return Finding(name, _text(value))


def not_reported(answers: Answers) -> Iterator[Finding]:
    """Report what the card does not report, and why."""
    if absent := answers["absent"]:
        yield stated("not reported by this card", [f"{name} ({why})" for name, why in absent.items()])


def holds(name: str, ok: bool | None, figure: object, limit: str) -> Finding:
    """Judge a fact."""
    return Finding(name, _text(figure), limit, ok)


def between(name: str, value: float | None, low: float | None, high: float | None, unit: str = "") -> Finding:
    """Judge a number by its bounds, of which one may be None; a ``value`` of None was not reported."""
    words = [f"≥ {low:g}" if low is not None else "", f"≤ {high:g}" if high is not None else ""]
    limit = " and ".join(filter(None, words)) + unit
    if value is None:
        return Finding(name, "not reported", limit)
    ok = (low is None or value >= low) and (high is None or value <= high)  # False for NaN
    return Finding(name, f"{value:.4g}{unit}", limit, ok)


def ratio(part: float | None, whole: float | None) -> float | None:
    """Divide two numbers; None if one was not reported."""
    return part / whole if part is not None and whole else None


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)


@dataclass(frozen=True)
class Card:
    """The card to measure, and how large its cells are.

    Tests rehearse every check on a machine without a card: ``shrink`` divides sizes, batches and times, and leaves a
    part of what ``some`` takes; ``stand_ins`` are small models in place of others.
    """

    device: str = "cuda:0"
    shrink: int = 1
    worker_command: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    def size(self, pixels: int) -> int:
        """Return the side of an image, or of another square."""
        return max(32, pixels // self.shrink)

    def count(self, number: int) -> int:
        """Return a batch, or a number of repeats."""
        return max(min(number, 2), number // self.shrink**2)

    def seconds(self, seconds: float) -> float:
        return seconds / self.shrink**2

    def some(self, alike: Sequence[Item]) -> Sequence[Item]:
        """Return all of several things that take the same code; a rehearsal needs one."""
        return alike[: -(-len(alike) // self.shrink)]

    def cell(self, model: str, pixels: int, **axes: Any) -> Cell:
        """Make a cell of this card; ``axes`` are fields of ``Cell``."""
        side = self.size(pixels)
        axes = {"threads": default_threads(), "allocator": "default", **axes}
        return Cell(model=self.stand_ins.get(model, model), height=side, width=side, device=self.device, **axes)

    def run(self, groups: Sequence[Sequence[Cell]], probes: Sequence[str], *, time_limit_s: float) -> list[Record]:
        """Measure cells as ``sema-bench run`` does; a failure is a record."""
        with self._executor(groups, probes, time_limit_s) as executor:
            return list(executor.run((tuple(group), {}) for group in groups))

    def copies(self, cell: Cell, count: int, *, time_limit_s: float) -> list[Record]:
        """Time copies of a cell side by side, each in its own process."""
        with self._executor([[cell]], ("throughput",), time_limit_s) as executor:
            return list(executor.copies(cell, count))

    @contextlib.contextmanager
    def _executor(
        self, groups: Sequence[Sequence[Cell]], probes: Sequence[str], time_limit_s: float
    ) -> Iterator[LocalExecutor]:
        sampling = Sampling(time_limit_s=self.seconds(time_limit_s))
        plan = Plan("gpu", tuple(map(tuple, groups)), tuple(probes), sampling)
        executor = LocalExecutor(plan, worker_command=self.worker_command)
        try:
            yield executor
        finally:
            executor.cancel()

    @contextlib.contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """Start a worker, as a run does."""
        worker = WorkerProcess(allocator="default", threads=default_threads(), command=self.worker_command)
        with contextlib.closing(worker):
            worker.wait_until_ready()
            yield worker


def inspected(worker: WorkerProcess, cell: Cell, probes: tuple[str, ...]) -> dict[str, float]:
    """Ask a worker for the metrics of inspect probes; raise CellFailure if the cell does not run."""
    findings = worker.ask(Inspect(WorkloadSpec(cell, 0), probes), timeout_s=300.0)
    return {each.metric: each.value for each in findings.measurements}


def status_of(record: Record) -> str:
    """Write the status of a record, with its reason."""
    return f"{record.status}: {record.reason}" if record.reason else record.status


def error_of(got: Any, exact: Any) -> float:
    """Compute the relative error of a tensor against an exact one."""
    exact = exact.double()
    return float((got.double() - exact).norm() / exact.norm())
