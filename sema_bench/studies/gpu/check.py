"""A check of the card: its measurement, and its limits.

A check has two halves. ``measure`` runs on the card, in a separate process, and returns plain JSON: its answers.
``judge`` turns answers into findings and needs no card. So a file of recorded answers replays a card, and after a wrong
limit is corrected, the answers can be judged again without measuring.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.machine.cpus import default_threads
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling

Item = TypeVar("Item")
#: The results of a measurement, as JSON has them.
Answers = Mapping[str, Any]

OK, FAILED, NOT_HERE = "ok", "FAILED", "not here"


class NotHereError(Exception):
    """A check cannot run on this card, or in this installation."""


@dataclass(frozen=True)
class Finding:
    """One figure of a check; ``ok`` is None if it is reported and not judged."""

    name: str
    figure: str
    limit: str = ""
    ok: bool | None = None


@dataclass(frozen=True)
class Check:
    """One check; ``minutes`` is its expected time on a data-centre card."""

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
    status = FAILED if False in verdicts else OK if True in verdicts else NOT_HERE
    reason = "the card reports nothing to judge" if status == NOT_HERE else ""
    return Outcome(status, findings, reason, seconds, answers)


def stated(name: str, value: object) -> Finding:
    """Report a figure without judging it."""
    return Finding(name, _text(value))


def not_reported(answers: Answers) -> Iterator[Finding]:
    """List the figures that the card does not report, with the reasons."""
    if absent := answers["absent"]:
        yield stated("not reported by this card", [f"{name} ({why})" for name, why in absent.items()])


def holds(name: str, ok: bool | None, figure: object, limit: str) -> Finding:
    """Judge a fact."""
    return Finding(name, _text(figure), limit, ok)


def between(name: str, value: float | None, low: float | None, high: float | None, unit: str = "") -> Finding:
    """Judge a number by its bounds, either of which may be None; a ``value`` of None was not reported."""
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

    Tests rehearse every check on a machine without a card: ``shrink`` divides sizes, batches and times, and keeps only
    a part of the items of ``some``; ``stand_ins`` maps models to smaller ones.
    """

    #: Precision → the axes of its cells.
    precisions: ClassVar[Mapping[str, Any]] = {"float32": {}, "TF32": {"tf32": True}, "bfloat16": {"dtype": "bfloat16"}}

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
        """Return all items that run the same code; a rehearsal needs only one."""
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
        """Time copies of a cell side by side, each in a separate process."""
        with self._executor([[cell]], ("throughput",), time_limit_s) as executor:
            return list(executor.copies(cell, count))

    def _executor(
        self, groups: Sequence[Sequence[Cell]], probes: Sequence[str], time_limit_s: float
    ) -> contextlib.closing[LocalExecutor]:
        sampling = Sampling(time_limit_s=self.seconds(time_limit_s))
        plan = Plan("gpu", tuple(map(tuple, groups)), tuple(probes), sampling)
        return contextlib.closing(LocalExecutor(plan, worker_command=self.worker_command))

    @contextlib.contextmanager
    def worker(self) -> Iterator[WorkerProcess]:
        """Start a worker, as a run does."""
        worker = WorkerProcess(allocator="default", threads=default_threads(), command=self.worker_command)
        with contextlib.closing(worker):
            worker.wait_until_ready()
            yield worker


def status_of(ended: Record | CellFailure) -> str:
    """Write the status of a cell, with its reason."""
    return f"{ended.status}: {ended.reason}" if ended.reason else ended.status


def result(record: Record, *metrics: str) -> dict[str, Any]:
    """Return the status of a cell and the values of ``metrics``, None for those that were not measured."""
    return {"status": status_of(record), **{metric: record.value(metric) for metric in metrics}}


def error_of(got: Any, exact: Any) -> float:
    """Compute the relative error of a tensor against an exact one."""
    exact = exact.double()
    return float((got.double() - exact).norm() / exact.norm())
