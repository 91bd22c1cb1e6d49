"""Test the harness: the spread of copies of one cell, the cost of measuring, and the agreement of clocks.

Copies of one cell in different processes give different numbers: the machine changes speed, and a process keeps the
memory that it happened to get. Below their spread, a difference between models has no meaning.
"""

from __future__ import annotations

import contextlib
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
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import student_t
from sema_bench.worker.protocol import CompareClocks, Prepare, Sample, WorkloadSpec

#: Two clocks that differ by more than this do not measure the same thing.
CLOCKS_AGREE = 0.005
#: Empty requests and passes to measure the costs with.
_ROUND_TRIPS = 50
_PASSES = 40
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Spread:
    """Copies of one cell, measured in the same way."""

    medians_s: tuple[float, ...]  # one for each copy
    interval: float | None  # median half-width of the copies' 95 % intervals; None without intervals
    disturbed: int = 0  # copies with more than half of their sample windows disturbed

    @property
    def half_width(self) -> float:
        """Relative 95 % half-width of one copy, by Student's t over all of them."""
        logarithms = [math.log(median) for median in self.medians_s]
        return student_t(len(logarithms) - 1, 0.95) * statistics.stdev(logarithms)

    @property
    def floor(self) -> float:
        """Difference within which two measurements of the same cell stay 95 % of the time."""
        return math.sqrt(2) * self.half_width

    @property
    def typical_difference(self) -> float:
        """Median relative difference of all pairs of copies."""
        pairs = itertools.combinations(self.medians_s, 2)
        return statistics.median(max(a, b) / min(a, b) - 1 for a, b in pairs)

    @property
    def largest_difference(self) -> float:
        """Relative difference of the fastest and the slowest copy."""
        return max(self.medians_s) / min(self.medians_s) - 1


@dataclass(frozen=True)
class Cost:
    """The cost of measuring."""

    request_s: float  # an empty request to a worker and its answer
    sample_s: float  # bookkeeping around one timed pass
    timed_share: float  # of the time of sampling; the rest is settling passes and requests


@dataclass(frozen=True)
class Clocks:
    """Two clocks on the same passes: that of the samples, and another."""

    names: tuple[str, str]
    ratio: float  # of the sums, the first over the second
    worst: float  # largest relative difference at one pass
    resolution_s: float  # smallest step of the first

    @property
    def agree(self) -> bool:
        return abs(self.ratio - 1) <= CLOCKS_AGREE


@dataclass(frozen=True)
class SelfTest:
    """The result of a self-test."""

    cell: Cell
    precision: float
    sequential: Spread
    interleaved: Spread
    cost: Cost
    clocks: Clocks
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def precise_enough(self) -> bool:
        """True if a model sampled beside others reaches the requested precision."""
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
    log: Callable[[str], None] = lambda line: None,
    worker_command: Sequence[str] = (),
) -> SelfTest:
    """Measure copies of ``cell`` alone and side by side, and the cost; raise CellFailure if it does not run."""

    def measure(count: int) -> list[Record]:
        plan = Plan("selftest", ((cell,),), ("throughput", "telemetry"), sampling)
        executor = LocalExecutor(plan, worker_command=worker_command)
        try:
            return [_ok(record) for record in executor.copies(cell, count)]
        finally:
            executor.cancel()

    alone: list[Record] = []
    for number in range(copies):
        log(f"copy {number + 1} of {copies}, alone")
        alone += measure(1)
    log(f"{copies} copies, side by side")
    together = measure(copies)
    log("what measuring costs, and the clocks")
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
        raise CellFailure(record.status, record.reason)
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
    with contextlib.closing(
        WorkerProcess(allocator=cell.allocator, threads=cell.threads, command=worker_command)
    ) as worker:
        worker.wait_until_ready()
        prepare = Prepare(WorkloadSpec(cell, sampling.seed), sampling.time_limit_s, sampling.time_limit_s)
        worker.ask(prepare, timeout_s=sampling.wall_limit_s(cell.mode))
        request_s = statistics.median(_timed(worker, 0)[0] for _ in range(_ROUND_TRIPS))
        took, samples = _timed(worker, _PASSES)
        answer = worker.ask(CompareClocks(_PASSES), timeout_s=_LIMIT_S)
    clocks = Clocks(
        names=answer.names,
        ratio=sum(answer.first_s) / sum(answer.second_s),
        worst=max(abs(a / b - 1) for a, b in zip(answer.first_s, answer.second_s, strict=True)),
        resolution_s=answer.resolution_s,
    )
    bookkeeping = max(0.0, took - request_s - sum(samples)) / _PASSES
    inside = sum(sum(record.measurements["latency_s"].samples) for record in records)
    outside = sum(record.details["telemetry"]["seconds"] for record in records)
    return Cost(request_s=request_s, sample_s=bookkeeping, timed_share=inside / outside), clocks


def _timed(worker: WorkerProcess, count: int) -> tuple[float, tuple[float, ...]]:
    """Take samples; return the time of the request, and those of the samples."""
    started = time.perf_counter()
    samples = worker.ask(Sample(count), timeout_s=_LIMIT_S)
    return time.perf_counter() - started, samples.wall_s


def verdict(selftest: SelfTest) -> Iterator[str]:
    """Describe which differences this machine can show."""
    side, after = selftest.interleaved, selftest.sequential
    can = f"±{side.half_width:.1%}"
    if selftest.precise_enough:
        yield f"precise enough for ±{selftest.precision:.1%}: one model beside another can be measured to {can}"
    else:
        yield f"TOO NOISY for ±{selftest.precision:.1%}: one model beside another can be measured to {can} here"
        if side.interval is None or side.interval > selftest.precision:
            yield "the samples do not reach that precision in this time either; a longer --time-limit may help"
    yield (
        f"differences below {side.floor:.1%} between models sampled side by side, and below {after.floor:.1%} between "
        "runs one after the other, may be chance"
    )
    if not selftest.clocks.agree:
        yield (
            f"THE CLOCKS DISAGREE: {selftest.clocks.names[0]} counts {selftest.clocks.ratio - 1:+.2%} against "
            f"{selftest.clocks.names[1]}; times of this machine cannot be trusted"
        )
