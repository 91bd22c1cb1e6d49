"""Cells on this machine, in worker processes, one timed forward pass at a time.

Each model gets two processes that live from one resolution to the next: an inspector, which counts and
traces, and a timer, in which nothing but the timed code ever ran. A process that crashed, hung or ran out
of memory is replaced. One process works at a time: two that shared the cores would spin at each other's
barriers, which made inspection ten times slower. The timers of a group take turns, in random order, round by round.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.counting import Counters
from sema_bench.driver.evaluator import ROLE as EVALUATOR
from sema_bench.driver.evaluator import Evaluator
from sema_bench.driver.executor import Listener
from sema_bench.driver.inspector import Inspector
from sema_bench.driver.peak_cache import PeakCache
from sema_bench.driver.peaks import check_against_roofline
from sema_bench.driver.room import has_room_for
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.driver.yardstick import Yardstick
from sema_bench.machine.disturbance import Telemetry, Window, may_calm_down, summed_up
from sema_bench.spec.cell import Cell
from sema_bench.spec.probes import PROBES
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import EvaluationSettings, Sampling
from sema_bench.worker.probes.throughput import (
    FEWEST_SAMPLES,
    WARMUP_SHARE,
    Samples,
    is_over_limit,
    is_precise,
    samples_from_json,
    summarise,
    visit_size,
)

#: A group of more models than this has one inspector at a time: each holds torch and a model's weights.
MOST_AT_ONCE = 8
#: How long a CUDA cell runs by itself before its energy is read, and while it is.
ENERGY_SETTLE_S, ENERGY_S = 1.0, 2.0
#: An untimed forward pass opens a visit (another model has used the caches since) where it costs little.
SETTLE_FROM_COUNT = 5


class LocalExecutor:
    """Runs groups one after the other in worker processes of this machine.

    Args:
        probes: names of the probes to run on every cell.
        sampling: the stop rule.
        yardstick: the cell that is timed beside every group, or None.
        peaks: what cells are held against by the probe ``roofline``.
        evaluation: how accuracy is taken; bookmarks: folder for what is known of unfinished evaluations.
        weights_of: where the weights of a cell are; None for random ones.
        listener: told what each cell is going through.
        worker_command: how to start a worker; tests pass one of their own.
    """

    def __init__(
        self,
        *,
        probes: Sequence[str],
        sampling: Sampling,
        yardstick: Cell | None = None,
        peaks: PeakCache | None = None,
        evaluation: EvaluationSettings | None = None,
        bookmarks: Path = Path(),
        weights_of: Callable[[Cell], Path | None] = lambda cell: None,
        listener: Listener = lambda cell, phase: None,
        worker_command: Sequence[str] = (),
    ) -> None:
        self._inspect_probes = [name for name in probes if PROBES.load(name).kind == "inspect"]
        self._meta_probes = [name for name in self._inspect_probes if PROBES.load(name).on_meta]
        self._timed = any(PROBES.load(name).kind == "timed" for name in probes)
        self._sampling = sampling
        self._listener = listener
        self._random = random.Random(sampling.seed)
        self._queue: deque[tuple[tuple[Cell, ...], Mapping[Cell, str]]] = deque()
        self._workers = WorkerPool(sampling, worker_command, weights_of)
        self._inspector = Inspector(self._workers, self._inspect_probes, listener)
        self._evaluator: Evaluator | None = None
        if any(PROBES.load(name).kind == "evaluated" for name in probes):
            self._evaluator = Evaluator(self._workers, evaluation or EvaluationSettings(), bookmarks, listener)
        self._counters: Counters | None = None
        self._peaks = peaks if "roofline" in probes else None
        self._telemetry: Telemetry | None = None
        self._has_telemetry = "telemetry" in probes
        self._yardstick: Yardstick | None = None
        if yardstick is not None and self._timed:
            self._yardstick = Yardstick(yardstick, sampling, worker_command=worker_command)

    @property
    def width(self) -> int:
        return 1

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self._queue.append((tuple(group), skipped))

    def records(self) -> Iterator[Record]:
        while self._queue:
            yield from self._run_group(*self._queue.popleft())

    def copies(self, cell: Cell, count: int) -> Iterator[Record]:
        """Time ``count`` copies of one cell side by side, each in a process of its own: what differs is noise."""
        attempts = [CellAttempt(cell, copy=number) for number in range(1, count + 1)]
        if self._has_telemetry and self._telemetry is None:
            self._telemetry = Telemetry(cell.device)
        for attempt in attempts:
            self._prepare(attempt)
        for attempt, failure in self._sample_interleaved(attempts):
            yield attempt.record() if failure is None else attempt.failed(failure)

    def cancel(self) -> None:
        self._queue.clear()
        if self._yardstick:
            self._yardstick.close()
        self._workers.stop()
        if self._counters:
            self._counters.close()

    def close(self) -> None:
        self._queue.clear()
        if self._yardstick:
            self._yardstick.close()
        self._workers.close()
        if self._counters:
            self._counters.close()

    def _run_group(self, group: tuple[Cell, ...], skipped: Mapping[Cell, str]) -> Iterator[Record]:
        if not self._timed and self._evaluator:
            yield from self._evaluator.records(group, skipped, self._inspector)
            return
        if not self._timed and self._inspect_probes == self._meta_probes:
            self._counters = self._counters or Counters()
            yield from self._counters.records(group, skipped, self._inspector.at_its_batch)
            return
        self._workers.keep_only(group)
        few = len(group) <= MOST_AT_ONCE and group[0].batch_policy == "fixed"
        for cell in group if few else ():  # all at once: they import torch while the first one works
            if self._inspect_probes and (cell not in skipped or self._meta_probes):
                self._workers.start("inspector", cell)
            if self._timed and cell not in skipped:
                self._workers.start("timer", cell)
        waiting: deque[CellAttempt] = deque()
        for cell in group:
            attempt = CellAttempt(cell)
            if cell in skipped:
                with contextlib.suppress(CellFailure):
                    self._inspector.inspect(attempt, self._meta_probes)
                yield attempt.record("skipped", skipped[cell])
            else:
                yield from self._inspect_into(waiting, attempt)
            if not few:
                self._workers.end("inspector", cell)
        if not self._timed:
            return
        if self._evaluator:
            self._workers.end(EVALUATOR, group[0])  # its memory and its processes are not to be felt by what is timed
        if self._has_telemetry and self._telemetry is None:
            self._telemetry = Telemetry(group[0].device)
        if self._peaks and waiting and waiting[0].cell.step == "infer":
            self._listener(waiting[0].cell, "measuring what the device can do at most")
            with contextlib.suppress(CellFailure):  # told with the cells that miss it
                self._peaks.of(waiting[0].cell)
        while waiting:
            yield from self._time_some(waiting)

    def _inspect_into(self, waiting: deque[CellAttempt], attempt: CellAttempt) -> Iterator[Record]:
        """Inspect a attempt and put it into ``waiting``; yield its record if that was all, or the end of it."""
        try:
            self._inspector.at_its_batch(attempt)
            if self._evaluator:
                self._evaluator.evaluate(attempt)
        except CellFailure as failure:
            yield attempt.failed(failure)
        else:
            if self._timed:
                waiting.append(attempt)
            else:
                yield attempt.record()

    def _time_some(self, waiting: deque[CellAttempt]) -> Iterator[Record]:
        """Take from ``waiting`` what fits into memory side by side, and sample it.

        A model whose memory ran out beside others goes back to ``waiting``, to be tried again alone: the neighbours
        may have had its memory.
        """
        side_by_side: list[CellAttempt] = []
        while waiting and (not side_by_side or has_room_for(waiting[0])):
            attempt = waiting.popleft()
            try:
                self._prepare(attempt)
            except CellFailure as failure:
                yield from self._again_or_failed(attempt, failure, waiting, beside=bool(side_by_side))
            else:
                side_by_side.append(attempt)
            if attempt.alone:
                break
        for attempt, problem in self._sample_interleaved(side_by_side):
            if problem is None:
                yield attempt.record()
            else:
                yield from self._again_or_failed(attempt, problem, waiting, beside=len(side_by_side) > 1)
        if waiting:  # memory is short
            for attempt in side_by_side:
                self._workers.end(attempt.timer, attempt.cell)

    def _again_or_failed(
        self, attempt: CellAttempt, failure: CellFailure, waiting: deque[CellAttempt], *, beside: bool
    ) -> Iterator[Record]:
        """Put a attempt that ran out of memory back where a second try may succeed; yield the record of any other."""
        try:
            if failure.status == "oom" and beside:
                waiting.append(attempt.again_alone())
            elif attempt.halve(failure):
                self._inspector.at_its_batch(attempt)
                waiting.appendleft(attempt)
            else:
                yield attempt.failed(failure)
        except CellFailure as second:
            yield attempt.failed(second)

    def _prepare(self, attempt: CellAttempt) -> None:
        self._listener(attempt.cell, "warming up")
        limit = self._sampling.time_limit_s
        limits = {"time_limit_s": limit, "warmup_limit_s": WARMUP_SHARE * limit}
        answer = self._workers.ask(attempt.timer, attempt, "prepare", **limits, **self._workers.request(attempt.cell))
        warmups = answer["warmup_s"]
        attempt.first_forward_s = answer["first_forward_s"]
        attempt.compiled_afresh = attempt.cell.compiled and bool(answer.get("fresh"))
        attempt.latency_s = warmups[-1] if warmups else attempt.first_forward_s
        attempt.traffic_bytes = answer.get("traffic_bytes", 0)
        attempt.details |= {"warmups": 1 + len(warmups), "warm": answer["warm"], **answer.get("details", {})}
        if FEWEST_SAMPLES * attempt.latency_s > self._workers.time_left(attempt):
            self._release([attempt])
            limit = self._sampling.wall_limit_s(attempt.cell.mode)
            raise CellFailure(
                "timeout",
                f"one forward pass takes {attempt.latency_s:.1f} s; "
                f"{FEWEST_SAMPLES} samples would not fit into {limit:.0f} s",
                worker_lost=False,
            )

    def _sample_interleaved(self, attempts: list[CellAttempt]) -> Iterator[tuple[CellAttempt, CellFailure | None]]:
        """Visit every model in random order, round by round, until all are precise; one that is out of time leaves.

        Yields each attempt when it is done, with its failure if it has one.
        """
        for attempt in attempts:
            attempt.details["interleaved_with"] = [other.cell.model for other in attempts if other is not attempt]
        yardstick = self._yardstick
        if yardstick:
            yardstick.prepare()
            yardstick.reset()
        active = list(attempts)
        while active:
            visits: list[CellAttempt | None] = [*active, *([None] if yardstick else [])]
            self._random.shuffle(visits)
            for visited in visits:
                if visited is None:
                    if yardstick:
                        yardstick.visit()
                    continue
                attempt = visited
                self._listener(attempt.cell, "sampling")
                try:
                    self._visit(attempt)
                except CellFailure as failure:
                    active.remove(attempt)
                    yield attempt, failure
            all_precise = all(
                is_precise(attempt.samples.wall_s, self._sampling) and not may_calm_down(attempt.windows)
                for attempt in active
            )
            for attempt in [attempt for attempt in attempts if attempt in active]:
                if all_precise or is_over_limit(attempt.samples.wall_s, self._sampling):
                    active.remove(attempt)
                    try:
                        self._finish(attempt, "precision" if all_precise else "time limit")
                    except CellFailure as failure:
                        yield attempt, failure
                    else:
                        yield attempt, None
        self._release(attempts)

    def _visit(self, attempt: CellAttempt) -> None:
        count = visit_size(attempt.latency_s)
        settle = 1 if count >= SETTLE_FROM_COUNT else 0
        samples, window = self._watched(attempt, count, settle)
        if window:
            attempt.windows.append(window)
        attempt.samples.extend(samples)
        attempt.latency_s = min(samples.wall_s)
        attempt.rounds += 1

    def _watched(self, attempt: CellAttempt, count: int, settle: int) -> tuple[Samples, Window | None]:
        """Take samples, and watch the machine meanwhile if that is wanted."""
        if not self._telemetry:
            return samples_from_json(
                self._workers.ask(attempt.timer, attempt, "sample", count=count, settle=settle)
            ), None
        with self._telemetry.window(self._workers.start(attempt.timer, attempt.cell).pid) as window:
            answer = self._workers.ask(attempt.timer, attempt, "sample", count=count, settle=settle)
        images = (count + settle) * attempt.cell.batch
        return samples_from_json(answer), dataclasses.replace(window(), images=images, samples=count)

    def _watch_energy(self, attempt: CellAttempt) -> None:
        """Run a CUDA cell by itself for a while: cards refresh energy and power too slowly for a window of samples.

        Its first part lets the readings forget the model before; these samples are not among those of the latency.
        """
        if not attempt.cell.device.startswith("cuda") or not self._telemetry:
            return
        for seconds in (ENERGY_SETTLE_S, ENERGY_S):
            window = self._watched(attempt, max(1, round(seconds / attempt.latency_s)), 0)[1]
        attempt.energy = [window] if window else []

    def _finish(self, attempt: CellAttempt, stop_reason: str) -> None:
        measurements = summarise(
            attempt.samples,
            batch=attempt.cell.batch,
            first_forward_s=attempt.first_forward_s,
            yardstick=self._yardstick.latency() if self._yardstick else None,
            seed=self._sampling.seed,
        )
        attempt.measurements |= {m.metric: m for m in measurements}
        if attempt.compiled_afresh:  # where the inspector compiled first, it has told
            took = max(0.0, attempt.first_forward_s - attempt.value("latency_s"))
            attempt.measurements["compile_s"] = Measurement(metric="compile_s", value=took)
        attempt.details |= {"stop_reason": stop_reason, "rounds": attempt.rounds}
        if self._telemetry:
            self._watch_energy(attempt)
            observed, facts = summed_up(attempt.windows, self._telemetry.absent, energy=attempt.energy)
            attempt.measurements |= {m.metric: m for m in observed}
            attempt.details |= facts
        if self._peaks:
            check_against_roofline(self._peaks, attempt)

    def _release(self, attempts: Sequence[CellAttempt]) -> None:
        """Let the timers give their memory back."""
        for attempt in attempts:
            if self._workers.has(attempt.timer, attempt.cell):
                with contextlib.suppress(CellFailure):  # one that fails here is replaced at the next size
                    self._workers.ask(attempt.timer, attempt, "release")
