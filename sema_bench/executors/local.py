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
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sema_bench.environment import available_memory_bytes, free_device_bytes, memory_limit_bytes
from sema_bench.executors.base import Listener
from sema_bench.executors.yardstick import Yardstick
from sema_bench.plan import Sampling
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
from sema_bench.store import utc_now
from sema_bench.worker_process import CellFailure, WorkerProcess

#: Share of the machine's memory that interleaving leaves free.
MEMORY_RESERVE = 0.1
#: An untimed forward pass opens a visit (another model has used the caches since) where it costs little.
SETTLE_FROM_COUNT = 5


@dataclass(eq=False)
class _Draft:
    """A cell in work: what is known of it so far.

    ``spent_s`` is the wall time of its requests, ``counted_from_s`` where the current part of the cell began:
    the wall limit holds for inspection and for the timed part apart.
    """

    cell: Cell
    started_at: str = field(default_factory=utc_now)
    spent_s: float = 0.0
    counted_from_s: float = 0.0
    measurements: dict[str, Measurement] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    first_forward_s: float = 0.0
    latency_s: float = 0.0
    rounds: int = 0
    alone: bool = False

    def again_alone(self) -> _Draft:
        """Return this draft ready to be timed afresh, without neighbours."""
        return dataclasses.replace(self, samples=Samples(), rounds=0, counted_from_s=self.spent_s, alone=True)

    def record(self, status: str = "ok", reason: str = "") -> Record:
        return Record(
            cell=self.cell,
            status=status,
            reason=reason,
            measurements=self.measurements,
            details=self.details,
            started_at=self.started_at,
            duration_s=round(self.spent_s, 3),
        )

    def failed(self, failure: CellFailure) -> Record:
        self.details |= failure.details
        return self.record(failure.status, failure.reason)


class LocalExecutor:
    """Runs groups one after the other in worker processes of this machine.

    Args:
        probes: names of the probes to run on every cell.
        sampling: the stop rule.
        yardstick: the cell that is timed beside every group, or None.
        listener: told what each cell is going through.
        worker_command: how to start a worker; tests pass one of their own.
    """

    def __init__(
        self,
        *,
        probes: Sequence[str],
        sampling: Sampling,
        yardstick: Cell | None = None,
        listener: Listener = lambda cell, phase: None,
        worker_command: Sequence[str] = (),
    ) -> None:
        self._inspect_probes = [name for name in probes if PROBES.load(name).kind == "inspect"]
        self._meta_probes = [name for name in self._inspect_probes if PROBES.load(name).on_meta]
        self._timed = any(PROBES.load(name).kind == "timed" for name in probes)
        self._sampling = sampling
        self._listener = listener
        self._worker_command = worker_command
        self._random = random.Random(sampling.seed)
        self._queue: deque[tuple[tuple[Cell, ...], Mapping[Cell, str]]] = deque()
        self._workers: dict[tuple[str, tuple[Any, ...]], WorkerProcess] = {}
        self._yardstick: Yardstick | None = None
        if yardstick is not None and self._timed:
            self._yardstick = Yardstick(yardstick, sampling, worker_command=worker_command)

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self._queue.append((tuple(group), skipped))

    def records(self) -> Iterator[Record]:
        while self._queue:
            yield from self._run_group(*self._queue.popleft())

    def cancel(self) -> None:
        self._queue.clear()
        if self._yardstick:
            self._yardstick.close()
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def close(self) -> None:
        self._queue.clear()
        if self._yardstick:
            self._yardstick.close()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _run_group(self, group: tuple[Cell, ...], skipped: Mapping[Cell, str]) -> Iterator[Record]:
        self._close_workers_of_other_models(group)
        for cell in group:  # all at once: they import torch while the first one works
            if self._inspect_probes and (cell not in skipped or self._meta_probes):
                self._worker("inspector", cell)
            if self._timed and cell not in skipped:
                self._worker("timer", cell)
        waiting: deque[_Draft] = deque()
        for cell in group:
            draft = _Draft(cell)
            if cell in skipped:
                with contextlib.suppress(CellFailure):
                    self._inspect(draft, self._meta_probes)
                yield draft.record("skipped", skipped[cell])
                continue
            try:
                self._inspect(draft, self._inspect_probes)
            except CellFailure as failure:
                yield draft.failed(failure)
                continue
            draft.counted_from_s = draft.spent_s
            waiting.append(draft)
        if not self._timed:
            yield from (draft.record() for draft in waiting)
            return
        while waiting:
            yield from self._time_some(waiting)

    def _time_some(self, waiting: deque[_Draft]) -> Iterator[Record]:
        """Take from ``waiting`` what fits into memory side by side, and sample it.

        A model whose memory ran out beside others goes back to ``waiting``, to be tried again alone: the neighbours
        may have had its memory.
        """
        side_by_side: list[_Draft] = []
        while waiting and (not side_by_side or self._has_room_for(waiting[0])):
            draft = waiting.popleft()
            try:
                self._prepare(draft)
            except CellFailure as failure:
                if failure.status == "oom" and side_by_side:
                    waiting.append(draft.again_alone())
                else:
                    yield draft.failed(failure)
            else:
                side_by_side.append(draft)
            if draft.alone:
                break
        for draft, problem in self._sample_interleaved(side_by_side):
            if problem is None:
                yield draft.record()
            elif problem.status == "oom" and len(side_by_side) > 1:
                waiting.append(draft.again_alone())
            else:
                yield draft.failed(problem)

    def _inspect(self, draft: _Draft, probes: Sequence[str]) -> None:
        if not probes:
            return
        self._listener(draft.cell, "inspecting")
        answer = self._ask("inspector", draft, "inspect", probes=probes, **self._request(draft.cell))
        measurements = [Measurement(**{**m, "samples": tuple(m["samples"])}) for m in answer["measurements"]]
        draft.measurements |= {m.metric: m for m in measurements}
        draft.details |= answer["details"]
        with contextlib.suppress(CellFailure):  # the results are in; a worker that fails now is replaced
            self._ask("inspector", draft, "release")

    def _prepare(self, draft: _Draft) -> None:
        self._listener(draft.cell, "warming up")
        limit = self._sampling.time_limit_s
        limits = {"time_limit_s": limit, "warmup_limit_s": WARMUP_SHARE * limit}
        answer = self._ask("timer", draft, "prepare", **limits, **self._request(draft.cell))
        warmups = answer["warmup_s"]
        draft.first_forward_s = answer["first_forward_s"]
        draft.latency_s = warmups[-1] if warmups else draft.first_forward_s
        draft.details |= {"warmups": 1 + len(warmups), "warm": answer["warm"]}
        if FEWEST_SAMPLES * draft.latency_s > self._time_left(draft):
            self._release([draft])
            limit = self._sampling.wall_limit_s(draft.cell.mode)
            raise CellFailure(
                "timeout",
                f"one forward pass takes {draft.latency_s:.1f} s; "
                f"{FEWEST_SAMPLES} samples would not fit into {limit:.0f} s",
                worker_lost=False,
            )

    def _sample_interleaved(self, drafts: list[_Draft]) -> Iterator[tuple[_Draft, CellFailure | None]]:
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
            visits: list[_Draft | None] = [*active, *([None] if yardstick else [])]
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
            all_precise = all(is_precise(draft.samples.wall_s, self._sampling) for draft in active)
            for draft in [draft for draft in drafts if draft in active]:
                if all_precise or is_over_limit(draft.samples.wall_s, self._sampling):
                    active.remove(draft)
                    self._finish(draft, "precision" if all_precise else "time limit")
                    yield draft, None
        self._release(drafts)

    def _visit(self, draft: _Draft) -> None:
        count = visit_size(draft.latency_s)
        settle = 1 if count >= SETTLE_FROM_COUNT else 0
        samples = samples_from_json(self._ask("timer", draft, "sample", count=count, settle=settle))
        draft.samples.extend(samples)
        draft.latency_s = min(samples.wall_s)
        draft.rounds += 1

    def _finish(self, draft: _Draft, stop_reason: str) -> None:
        measurements = summarise(
            draft.samples,
            batch=draft.cell.batch,
            first_forward_s=draft.first_forward_s,
            yardstick_s=self._yardstick.median_s() if self._yardstick else None,
            seed=self._sampling.seed,
        )
        draft.measurements |= {m.metric: m for m in measurements}
        draft.details |= {"stop_reason": stop_reason, "rounds": draft.rounds}

    def _release(self, drafts: Sequence[_Draft]) -> None:
        """Let the timers give their memory back."""
        for draft in drafts:
            if ("timer", draft.cell.variant) in self._workers:
                with contextlib.suppress(CellFailure):  # one that fails here is replaced at the next size
                    self._ask("timer", draft, "release")

    def _has_room_for(self, draft: _Draft) -> bool:
        """Tell whether this model fits beside those already prepared, by what its inspection measured."""
        if draft.alone:
            return False
        reserve = MEMORY_RESERVE * memory_limit_bytes()
        if draft.cell.device != "cpu":
            return free_device_bytes(draft.cell.device) > 1.2 * _value(draft, "peak_reserved_bytes") + 2**30
        need = max(_value(draft, "rss_growth_bytes"), _value(draft, "peak_memory_bytes"))
        return available_memory_bytes() > need + reserve

    def _request(self, cell: Cell) -> dict[str, Any]:
        return {"cell": dataclasses.asdict(cell), "seed": self._sampling.seed}

    def _ask(self, role: str, draft: _Draft, do: str, **request: Any) -> dict[str, Any]:
        """Send a request to the worker of this role and model, within what is left of the cell's wall time."""
        worker = self._worker(role, draft.cell)
        started = time.monotonic()
        try:
            worker.wait_until_ready()
            started = time.monotonic()  # starting up is not the cell's time
            return worker.ask(do, timeout_s=max(1.0, self._time_left(draft)), **request)
        except CellFailure as failure:
            self._drop(role, draft.cell)  # after an error, too: it may have left the process in a bad state
            if failure.status == "timeout":
                limit = self._sampling.wall_limit_s(draft.cell.mode)
                raise CellFailure("timeout", f"not done within {limit:.0f} s ({do})", worker_lost=True) from None
            raise
        finally:
            draft.spent_s += time.monotonic() - started

    def _time_left(self, draft: _Draft) -> float:
        return self._sampling.wall_limit_s(draft.cell.mode) - (draft.spent_s - draft.counted_from_s)

    def _worker(self, role: str, cell: Cell) -> WorkerProcess:
        key = (role, cell.variant)
        if key not in self._workers:
            self._workers[key] = WorkerProcess(
                allocator=cell.allocator,
                threads=cell.threads,
                command=self._worker_command,
            )
        return self._workers[key]

    def _drop(self, role: str, cell: Cell) -> None:
        worker = self._workers.pop((role, cell.variant), None)
        if worker:
            worker.kill()

    def _close_workers_of_other_models(self, group: Sequence[Cell]) -> None:
        wanted = {cell.variant for cell in group}
        for key in [key for key in self._workers if key[1] not in wanted]:
            self._workers.pop(key).close()


def _value(draft: _Draft, metric: str) -> float:
    measurement = draft.measurements.get(metric)
    return 0.0 if measurement is None else measurement.value
