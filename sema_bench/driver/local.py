"""Measure cells on this machine, in worker processes, one timed forward pass at a time.

Each model gets two processes that live from one resolution to the next: an inspector, which counts and
traces, and a timer, which never runs anything but the timed code. A process that crashed, hung or ran out
of memory is replaced. One process computes at a time: two that share the cores spin at each other's
barriers, which made inspection ten times slower. Counting works on shapes, in one thread, so the inspectors of a group
count side by side, before anything is timed. The timers take turns, in random order, round by round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.device_lock import device_lock
from sema_bench.driver.evaluator import ROLE as EVALUATOR
from sema_bench.driver.evaluator import Evaluator
from sema_bench.driver.executor import Group, Listener, ignore
from sema_bench.driver.inspector import Inspector
from sema_bench.driver.memory_fit import fits_beside
from sema_bench.driver.peaks import PeakCache, measure_peaks
from sema_bench.driver.sampler import InterleavedSampler
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import UsageError
from sema_bench.machine.cpus import default_threads
from sema_bench.machine.devices import gpu_identity
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.probes import PROBES
from sema_bench.spec.record import Record
from sema_bench.spec.weights_source import trained_seed, weights_path, why_it_failed

#: A group of more models than this has one inspector at a time: each holds torch and a model's weights.
MOST_AT_ONCE = 8


class LocalExecutor:
    """Runs groups one after the other in worker processes of this machine.

    Args:
        plan: how to measure; the method ``run`` gets the cells.
        run: folder of the run, with the weights of its cells and the tallies of unfinished evaluations.
        environment: fingerprint of this machine, the key of its cached peak rates.
    """

    def __init__(
        self,
        plan: Plan,
        run: Path = Path(),
        *,
        environment: str = "",
        listener: Listener = ignore,
        worker_command: Sequence[str] = (),
    ) -> None:
        probes = {name: PROBES.load(name) for name in plan.probes}
        kinds = {probe.kind for probe in probes.values()}
        self._inspect_probes = [name for name, probe in probes.items() if probe.kind == "inspect"]
        self._meta_probes = [name for name in self._inspect_probes if probes[name].on_meta]
        self._timed = "timed" in kinds
        self._listener = listener
        self._workers = WorkerPool(plan.sampling, worker_command, functools.partial(_weights_of, run))
        self._inspector = Inspector(self._workers, listener)
        self._lock = contextlib.ExitStack()  # holds the card while a group runs
        self._evaluator: Evaluator | None = None
        if "evaluated" in kinds:
            self._evaluator = Evaluator(self._workers, plan.evaluation, run / "unfinished", listener)
        self._counters = ThreadPoolExecutor(default_threads())  # a worker dies with the thread that started it
        self._peaks: PeakCache | None = None
        if "roofline" in probes:
            self._peaks = PeakCache(environment, functools.partial(measure_peaks, worker_command=worker_command))
        self._sampler = InterleavedSampler(
            self._workers,
            plan.sampling,
            listener,
            yardstick=plan.yardstick if self._timed else None,
            watch="telemetry" in probes,
            peaks=self._peaks,
        )

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        for group, skipped in groups:
            only_counts = not (self._timed or self._evaluator) and self._inspect_probes == self._meta_probes
            if only_counts or not (device := group[0].device).startswith("cuda"):
                yield from self._measure(group, skipped)
                continue
            with self._lock:
                self._lock.enter_context(device_lock(device))
                identity = gpu_identity(device)
                for record in self._measure(group, skipped):
                    yield dataclasses.replace(record, details={**record.details, "gpu": identity})

    def _measure(self, group: tuple[Cell, ...], skipped: Mapping[Cell, str]) -> Iterator[Record]:
        if self._timed or not (self._evaluator or self._inspect_probes == self._meta_probes):
            return self._run_group(group, skipped)
        return self._count_group(group, skipped)

    def copies(self, cell: Cell, count: int) -> Iterator[Record]:
        """Time ``count`` copies of one cell side by side, each in its own process: any difference is noise."""
        attempts = [CellAttempt(cell, timer=f"timer {number}") for number in range(1, count + 1)]
        for attempt in attempts:
            self._sampler.prepare(attempt)
        for attempt, failure in self._sampler.sample(attempts):
            yield attempt.record(failure)

    def cancel(self) -> None:
        self._workers.stop()
        self.close()

    def close(self) -> None:
        self._workers.close()
        self._lock.close()
        self._counters.shutdown(cancel_futures=True)

    def _count_group(self, group: tuple[Cell, ...], skipped: Mapping[Cell, str]) -> Iterator[Record]:
        """Evaluate cells in one worker, or count them in a worker per CPU: nothing can disturb a count."""

        def count(cell: Cell) -> Record | None:
            role = EVALUATOR if self._evaluator else f"counter {threading.get_ident()}"
            return self._inspect(CellAttempt(cell, skipped=skipped.get(cell, "")), self._inspect_probes, role)

        if self._evaluator:
            yield from filter(None, map(count, group))
        else:
            yield from filter(None, self._counters.map(count, group))

    def _run_group(self, group: tuple[Cell, ...], skipped: Mapping[Cell, str]) -> Iterator[Record]:
        self._workers.keep_only(group)
        few = len(group) <= MOST_AT_ONCE and group[0].batch_policy == "fixed"
        for cell in group if few else ():  # all at once: they import torch while the first one works
            if self._inspect_probes and (cell not in skipped or self._meta_probes):
                self._workers.start("inspector", cell)
            if self._timed and cell not in skipped:
                self._workers.start("timer", cell)
        waiting: deque[CellAttempt] = deque()
        attempts = [CellAttempt(cell, skipped=skipped.get(cell, "")) for cell in group]
        counted = few and group[0].device == "cpu"  # on a card, an inspector ends after its first request
        problems = self._counters.map(self._count, attempts) if counted else map(self._count_skipped, attempts)
        probes = [name for name in self._inspect_probes if not (counted and name in self._meta_probes)]
        for attempt, problem in zip(attempts, list(problems) if counted else problems, strict=True):
            if attempt.skipped or problem:
                yield attempt.record(problem)
            elif record := self._inspect(attempt, probes):
                yield record
            else:
                waiting.append(attempt)
            if not few:
                self._workers.end("inspector", attempt.cell)
        if self._timed and self._evaluator:
            self._workers.end(EVALUATOR, group[0])  # its memory and its processes must not disturb the timing
        if self._peaks and waiting and waiting[0].cell.step == "infer":
            self._listener(waiting[0].cell, "measuring peak rates")
            with contextlib.suppress(CellFailure):  # the records of the cells say so
                self._peaks.of(waiting[0].cell)
        while waiting:
            yield from self._time_some(waiting)

    def _count(self, attempt: CellAttempt) -> CellFailure | None:
        """Run the probes that need only shapes; return the failure, if any."""
        try:
            self._inspector.inspect(attempt, self._meta_probes, shapes=True)
        except CellFailure as failure:
            return failure
        return None

    def _count_skipped(self, attempt: CellAttempt) -> CellFailure | None:
        return self._count(attempt) if attempt.skipped else None

    def _inspect(self, attempt: CellAttempt, probes: Sequence[str], role: str = "inspector") -> Record | None:
        """Inspect and evaluate a cell; return its record, or None if it is still to be timed."""
        try:
            self._inspector.at_its_batch(attempt, probes, role)
            if self._evaluator and not attempt.skipped:
                self._evaluator.evaluate(attempt)
        except CellFailure as failure:
            return attempt.record(failure)
        return None if self._timed else attempt.record()

    def _time_some(self, waiting: deque[CellAttempt]) -> Iterator[Record]:
        """Take from ``waiting`` the cells that fit into memory side by side, and sample them.

        A cell that ran out of memory beside others goes back to ``waiting``, to be tried again alone: its neighbours
        may have taken the memory.
        """
        side_by_side: list[CellAttempt] = []
        while waiting and (not side_by_side or self._fits(waiting[0], side_by_side[0])):
            attempt = waiting.popleft()
            try:
                self._sampler.prepare(attempt)
            except CellFailure as failure:
                yield from self._again_or_failed(attempt, failure, waiting, beside=bool(side_by_side))
            else:
                side_by_side.append(attempt)
            if attempt.alone:
                break
        for attempt, problem in self._sampler.sample(side_by_side):
            if problem is None:
                yield attempt.record()
            else:
                yield from self._again_or_failed(attempt, problem, waiting, beside=len(side_by_side) > 1)
        if waiting:  # memory is short
            for attempt in side_by_side:
                self._workers.end(attempt.timer, attempt.cell)

    def _fits(self, attempt: CellAttempt, prepared: CellAttempt) -> bool:
        with contextlib.suppress(CellFailure):
            return fits_beside(attempt, self._workers.free_bytes(prepared.timer, prepared) or 0)
        return False

    def _again_or_failed(
        self, attempt: CellAttempt, failure: CellFailure, waiting: deque[CellAttempt], *, beside: bool
    ) -> Iterator[Record]:
        """Put a cell that ran out of memory back if a second try may succeed; otherwise yield its record."""
        try:
            if failure.status == "oom" and beside:
                waiting.append(attempt.again_alone())
            elif attempt.halve(failure):
                self._inspector.at_its_batch(attempt, self._inspect_probes)
                waiting.appendleft(attempt)
            else:
                yield attempt.record(failure)
        except CellFailure as second:
            yield attempt.record(second)


def _weights_of(run: Path, cell: Cell) -> Path | None:
    """Return the file with the weights of ``cell``, None if they are random; raise CellFailure if it is missing."""
    try:
        path = weights_path(run, cell)
    except UsageError as problem:
        raise CellFailure("error", str(problem)) from None
    if path is not None and trained_seed(cell.weights) is not None and not path.exists():
        raise CellFailure("error", f"its training failed: {why_it_failed(path.parent)}")
    return path
