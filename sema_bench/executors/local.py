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

from sema_bench.executors.base import Listener
from sema_bench.executors.counting import Counters
from sema_bench.executors.draft import Draft
from sema_bench.executors.evaluator import ROLE as EVALUATOR
from sema_bench.executors.evaluator import Evaluator
from sema_bench.executors.inspector import Inspector
from sema_bench.executors.peaks import hold_against
from sema_bench.executors.room import has_room_for
from sema_bench.executors.worker_pool import WorkerPool
from sema_bench.executors.yardstick import Yardstick
from sema_bench.peak_book import PeakBook
from sema_bench.plan import EvaluationSettings, Sampling
from sema_bench.probes import PROBES
from sema_bench.probes.throughput import (
    FEWEST_SAMPLES,
    WARMUP_SHARE,
    Samples,
    is_over_limit,
    is_precise,
    samples_from_json,
    summarise,
    visit_size,
)
from sema_bench.schema import Cell, Measurement, Record
from sema_bench.telemetry.windows import Telemetry, Window, may_calm_down, summed_up
from sema_bench.worker_process import CellFailure

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
        peaks: PeakBook | None = None,
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
        drafts = [Draft(cell, copy=number) for number in range(1, count + 1)]
        if self._has_telemetry and self._telemetry is None:
            self._telemetry = Telemetry(cell.device)
        for draft in drafts:
            self._prepare(draft)
        for draft, failure in self._sample_interleaved(drafts):
            yield draft.record() if failure is None else draft.failed(failure)

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
        waiting: deque[Draft] = deque()
        for cell in group:
            draft = Draft(cell)
            if cell in skipped:
                with contextlib.suppress(CellFailure):
                    self._inspector.inspect(draft, self._meta_probes)
                yield draft.record("skipped", skipped[cell])
            else:
                yield from self._inspect_into(waiting, draft)
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

    def _inspect_into(self, waiting: deque[Draft], draft: Draft) -> Iterator[Record]:
        """Inspect a draft and put it into ``waiting``; yield its record if that was all, or the end of it."""
        try:
            self._inspector.at_its_batch(draft)
            if self._evaluator:
                self._evaluator.evaluate(draft)
        except CellFailure as failure:
            yield draft.failed(failure)
        else:
            if self._timed:
                waiting.append(draft)
            else:
                yield draft.record()

    def _time_some(self, waiting: deque[Draft]) -> Iterator[Record]:
        """Take from ``waiting`` what fits into memory side by side, and sample it.

        A model whose memory ran out beside others goes back to ``waiting``, to be tried again alone: the neighbours
        may have had its memory.
        """
        side_by_side: list[Draft] = []
        while waiting and (not side_by_side or has_room_for(waiting[0])):
            draft = waiting.popleft()
            try:
                self._prepare(draft)
            except CellFailure as failure:
                yield from self._again_or_failed(draft, failure, waiting, beside=bool(side_by_side))
            else:
                side_by_side.append(draft)
            if draft.alone:
                break
        for draft, problem in self._sample_interleaved(side_by_side):
            if problem is None:
                yield draft.record()
            else:
                yield from self._again_or_failed(draft, problem, waiting, beside=len(side_by_side) > 1)
        if waiting:  # memory is short
            for draft in side_by_side:
                self._workers.end(draft.timer, draft.cell)

    def _again_or_failed(
        self, draft: Draft, failure: CellFailure, waiting: deque[Draft], *, beside: bool
    ) -> Iterator[Record]:
        """Put a draft that ran out of memory back where a second try may succeed; yield the record of any other."""
        try:
            if failure.status == "oom" and beside:
                waiting.append(draft.again_alone())
            elif draft.halve(failure):
                self._inspector.at_its_batch(draft)
                waiting.appendleft(draft)
            else:
                yield draft.failed(failure)
        except CellFailure as second:
            yield draft.failed(second)

    def _prepare(self, draft: Draft) -> None:
        self._listener(draft.cell, "warming up")
        limit = self._sampling.time_limit_s
        limits = {"time_limit_s": limit, "warmup_limit_s": WARMUP_SHARE * limit}
        answer = self._workers.ask(draft.timer, draft, "prepare", **limits, **self._workers.request(draft.cell))
        warmups = answer["warmup_s"]
        draft.first_forward_s = answer["first_forward_s"]
        draft.compiled_afresh = draft.cell.compiled and bool(answer.get("fresh"))
        draft.latency_s = warmups[-1] if warmups else draft.first_forward_s
        draft.traffic_bytes = answer.get("traffic_bytes", 0)
        draft.details |= {"warmups": 1 + len(warmups), "warm": answer["warm"], **answer.get("details", {})}
        if FEWEST_SAMPLES * draft.latency_s > self._workers.time_left(draft):
            self._release([draft])
            limit = self._sampling.wall_limit_s(draft.cell.mode)
            raise CellFailure(
                "timeout",
                f"one forward pass takes {draft.latency_s:.1f} s; "
                f"{FEWEST_SAMPLES} samples would not fit into {limit:.0f} s",
                worker_lost=False,
            )

    def _sample_interleaved(self, drafts: list[Draft]) -> Iterator[tuple[Draft, CellFailure | None]]:
        """Visit every model in random order, round by round, until all are precise; one that is out of time leaves.

        Yields each draft when it is done, with its failure if it has one.
        """
        for draft in drafts:
            draft.details["interleaved_with"] = [other.cell.model for other in drafts if other is not draft]
        yardstick = self._yardstick
        if yardstick:
            yardstick.prepare()
            yardstick.reset()
        active = list(drafts)
        while active:
            visits: list[Draft | None] = [*active, *([None] if yardstick else [])]
            self._random.shuffle(visits)
            for visited in visits:
                if visited is None:
                    if yardstick:
                        yardstick.visit()
                    continue
                draft = visited
                self._listener(draft.cell, "sampling")
                try:
                    self._visit(draft)
                except CellFailure as failure:
                    active.remove(draft)
                    yield draft, failure
            all_precise = all(
                is_precise(draft.samples.wall_s, self._sampling) and not may_calm_down(draft.windows)
                for draft in active
            )
            for draft in [draft for draft in drafts if draft in active]:
                if all_precise or is_over_limit(draft.samples.wall_s, self._sampling):
                    active.remove(draft)
                    try:
                        self._finish(draft, "precision" if all_precise else "time limit")
                    except CellFailure as failure:
                        yield draft, failure
                    else:
                        yield draft, None
        self._release(drafts)

    def _visit(self, draft: Draft) -> None:
        count = visit_size(draft.latency_s)
        settle = 1 if count >= SETTLE_FROM_COUNT else 0
        samples, window = self._watched(draft, count, settle)
        if window:
            draft.windows.append(window)
        draft.samples.extend(samples)
        draft.latency_s = min(samples.wall_s)
        draft.rounds += 1

    def _watched(self, draft: Draft, count: int, settle: int) -> tuple[Samples, Window | None]:
        """Take samples, and watch the machine meanwhile if that is wanted."""
        if not self._telemetry:
            return samples_from_json(self._workers.ask(draft.timer, draft, "sample", count=count, settle=settle)), None
        with self._telemetry.window(self._workers.start(draft.timer, draft.cell).pid) as window:
            answer = self._workers.ask(draft.timer, draft, "sample", count=count, settle=settle)
        images = (count + settle) * draft.cell.batch
        return samples_from_json(answer), dataclasses.replace(window(), images=images, samples=count)

    def _watch_energy(self, draft: Draft) -> None:
        """Run a CUDA cell by itself for a while: cards refresh energy and power too slowly for a window of samples.

        Its first part lets the readings forget the model before; these samples are not among those of the latency.
        """
        if not draft.cell.device.startswith("cuda") or not self._telemetry:
            return
        for seconds in (ENERGY_SETTLE_S, ENERGY_S):
            window = self._watched(draft, max(1, round(seconds / draft.latency_s)), 0)[1]
        draft.energy = [window] if window else []

    def _finish(self, draft: Draft, stop_reason: str) -> None:
        measurements = summarise(
            draft.samples,
            batch=draft.cell.batch,
            first_forward_s=draft.first_forward_s,
            yardstick=self._yardstick.latency() if self._yardstick else None,
            seed=self._sampling.seed,
        )
        draft.measurements |= {m.metric: m for m in measurements}
        if draft.compiled_afresh:  # where the inspector compiled first, it has told
            took = max(0.0, draft.first_forward_s - draft.value("latency_s"))
            draft.measurements["compile_s"] = Measurement(metric="compile_s", value=took)
        draft.details |= {"stop_reason": stop_reason, "rounds": draft.rounds}
        if self._telemetry:
            self._watch_energy(draft)
            observed, facts = summed_up(draft.windows, self._telemetry.absent, energy=draft.energy)
            draft.measurements |= {m.metric: m for m in observed}
            draft.details |= facts
        if self._peaks:
            hold_against(self._peaks, draft)

    def _release(self, drafts: Sequence[Draft]) -> None:
        """Let the timers give their memory back."""
        for draft in drafts:
            if self._workers.has(draft.timer, draft.cell):
                with contextlib.suppress(CellFailure):  # one that fails here is replaced at the next size
                    self._workers.ask(draft.timer, draft, "release")
