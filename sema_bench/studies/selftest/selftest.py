"""The harness measured by itself: what it finds between a cell and itself, what it costs, and whether its clocks agree.

Copies of one cell, each in a process of its own, should all give the same number. They do not: the machine changes
speed, and a process keeps for its life the memory that it happened to get. How far apart they come to lie is the floor
below which a difference between models says nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.machine.disturbance import DISTURBED_SHARE
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import student_t

#: Two clocks that differ by more than this do not measure the same thing.
CLOCKS_AGREE = 0.005
#: Empty requests and passes that the costs are taken from.
_ROUND_TRIPS = 50
_PASSES = 40
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Spread:
    """Medians of the same cell, measured several times.

    Attributes:
        medians_s: one for each copy.
        interval: half-width of a copy's own 95 % interval, the middle one of them; None without intervals.
        disturbed: copies of which more than half of the sample windows were disturbed.
    """

    medians_s: tuple[float, ...]
    interval: float | None
    disturbed: int = 0

    @property
    def half_width(self) -> float:
        """95 % half-width of one measurement, relative, as the copies show it (Student's t: they are few)."""
        logarithms = [math.log(median) for median in self.medians_s]
        return student_t(len(logarithms) - 1, 0.95) * statistics.stdev(logarithms)

    @property
    def floor(self) -> float:
        """What two measurements of the same thing may differ by, 95 % of the time."""
        return math.sqrt(2) * self.half_width

    @property
    def typical_difference(self) -> float:
        """Relative difference of two copies, the middle one of all pairs."""
        pairs = itertools.combinations(self.medians_s, 2)
        return statistics.median(max(a, b) / min(a, b) - 1 for a, b in pairs)

    @property
    def largest_difference(self) -> float:
        """Relative difference of the two copies that lie furthest apart."""
        return max(self.medians_s) / min(self.medians_s) - 1


@dataclass(frozen=True)
class Cost:
    """What measuring costs beside what is measured.

    Attributes:
        request_s: an empty request to a worker and its answer.
        sample_s: bookkeeping around one timed pass.
        timed_share: part of the time of sampling that was inside timed passes (the rest: settling passes, requests).
    """

    request_s: float
    sample_s: float
    timed_share: float


@dataclass(frozen=True)
class Clocks:
    """Two clocks on the same passes: the one that samples are taken with, and another.

    Attributes:
        names: of both.
        ratio: of the sums, the first over the second.
        worst: relative difference at the pass where they differ most.
        resolution_s: smallest step of the first.
    """

    names: tuple[str, str]
    ratio: float
    worst: float
    resolution_s: float

    @property
    def agree(self) -> bool:
        return abs(self.ratio - 1) <= CLOCKS_AGREE


@dataclass(frozen=True)
class SelfTest:
    """What the harness found of itself."""

    cell: Cell
    precision: float
    sequential: Spread
    interleaved: Spread
    cost: Cost
    clocks: Clocks
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def precise_enough(self) -> bool:
        """Whether a model that is sampled beside others is measured to the precision asked for."""
        return self.interleaved.half_width <= self.precision

    def to_json(self) -> dict[str, Any]:
        body = dataclasses.asdict(self)
        for name, spread in (("sequential", self.sequential), ("interleaved", self.interleaved)):
            for key in ("half_width", "floor", "typical_difference", "largest_difference"):
                body[name][key] = getattr(spread, key)
        return {**body, "precise_enough": self.precise_enough, "clocks_agree": self.clocks.agree}


def run_selftest(
    cell: Cell,
    *,
    sampling: Sampling,
    copies: int = 10,
    told: Callable[[str], None] = lambda line: None,
    worker_command: Sequence[str] = (),
) -> SelfTest:
    """Measure ``copies`` copies of ``cell`` one after the other and side by side, and the cost of measuring.

    Raises:
        CellFailure: the cell does not run.
    """

    def measure(count: int) -> list[Record]:
        executor = LocalExecutor(probes=("throughput", "telemetry"), sampling=sampling, worker_command=worker_command)
        try:
            return [_ok(record) for record in executor.copies(cell, count)]
        finally:
            executor.cancel()

    alone: list[Record] = []
    for number in range(copies):
        told(f"copy {number + 1} of {copies}, alone")
        alone += measure(1)
    told(f"{copies} copies, side by side")
    together = measure(copies)
    told("what measuring costs, and the clocks")
    cost, clocks = _cost_and_clocks(cell, sampling, together, worker_command)
    return SelfTest(
        cell=cell,
        precision=sampling.precision,
        sequential=_spread(alone),
        interleaved=_spread(together),
        cost=cost,
        clocks=clocks,
        absent=dict(together[0].details["telemetry"]["absent"]),
    )


def _ok(record: Record) -> Record:
    if record.status != "ok":
        raise CellFailure(record.status, record.reason, worker_lost=False)
    return record


def _spread(records: Sequence[Record]) -> Spread:
    latencies = [record.measurements["latency_s"] for record in records]
    widths = [(m.ci_high - m.ci_low) / 2 / m.value for m in latencies if m.ci_low is not None and m.ci_high is not None]
    return Spread(
        medians_s=tuple(m.value for m in latencies),
        interval=statistics.median(widths) if widths else None,
        disturbed=sum((record.value("disturbed_share") or 0.0) > DISTURBED_SHARE for record in records),
    )


def _cost_and_clocks(
    cell: Cell, sampling: Sampling, records: Sequence[Record], worker_command: Sequence[str]
) -> tuple[Cost, Clocks]:
    worker = WorkerProcess(allocator=cell.allocator, threads=cell.threads, command=worker_command)
    try:
        worker.wait_until_ready()
        limits = {"time_limit_s": sampling.time_limit_s, "warmup_limit_s": sampling.time_limit_s}
        request = {"cell": dataclasses.asdict(cell), "seed": sampling.seed}
        worker.ask("prepare", timeout_s=sampling.wall_limit_s(cell.mode), **limits, **request)
        empty = [_timed(worker, 0)[0] for _ in range(_ROUND_TRIPS)]
        request_s = statistics.median(empty)
        took, samples = _timed(worker, _PASSES)
        found = worker.ask("clocks", timeout_s=_LIMIT_S, count=_PASSES)
    finally:
        worker.close()
    pairs = list(zip(found["first_s"], found["second_s"], strict=True))
    clocks = Clocks(
        names=(found["names"][0], found["names"][1]),
        ratio=sum(found["first_s"]) / sum(found["second_s"]),
        worst=max(abs(a / b - 1) for a, b in pairs),
        resolution_s=found["resolution_s"],
    )
    bookkeeping = max(0.0, took - request_s - sum(samples)) / _PASSES
    inside = sum(sum(record.measurements["latency_s"].samples) for record in records)
    outside = sum(record.details["telemetry"]["seconds"] for record in records)
    return Cost(request_s=request_s, sample_s=bookkeeping, timed_share=inside / outside), clocks


def _timed(worker: WorkerProcess, count: int) -> tuple[float, list[float]]:
    """Ask for samples; return how long that took from here, and the samples."""
    started = time.perf_counter()
    answer = worker.ask("sample", timeout_s=_LIMIT_S, count=count, settle=0)
    return time.perf_counter() - started, answer["wall_s"]


def verdict(found: SelfTest) -> Iterator[str]:
    """Say in plain words what this machine can tell apart."""
    side, after = found.interleaved, found.sequential
    can = f"±{side.half_width:.1%}"
    if found.precise_enough:
        yield f"precise enough: asked ±{found.precision:.1%}, and one model beside another is measured to {can}"
    else:
        yield f"TOO NOISY for ±{found.precision:.1%}: one model beside another can be measured to {can} here"
        if side.interval is None or side.interval > found.precision:
            yield "its samples do not reach that precision in this time either: a longer --time-limit may help"
    yield (
        f"differences below {side.floor:.1%} between models sampled side by side, and below {after.floor:.1%} between "
        "runs one after the other, say nothing"
    )
    if not found.clocks.agree:
        yield (
            f"THE CLOCKS DISAGREE: {found.clocks.names[0]} counts {found.clocks.ratio - 1:+.2%} against "
            f"{found.clocks.names[1]}; times of this machine cannot be trusted"
        )
