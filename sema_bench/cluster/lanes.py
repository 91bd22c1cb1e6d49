"""Run executors side by side, each in its own thread: a group goes to the first lane that is free.

A lane is one device or one machine, and no two cells are timed on it at once. If a lane is lost, another one measures
its remaining cells. A cell that fails by itself has its record and is never tried again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from sema_bench.driver.executor import Executor, Group
from sema_bench.errors import WorkerError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.store.files import utc_now
from sema_bench.text.console import warn

#: A cell that has lost this many lanes is not tried again: it may be the cause.
MOST_LOSSES = 3


class Lane(Executor, Protocol):
    """An executor that may have to wait for its machine; ``run`` may raise ``LaneLost``."""

    def open(self) -> None:
        """Wait, in the thread of the lane, until it can measure a group; raise LaneLost if it never can."""


class LaneLost(Exception):  # noqa: N818 - a fact about a machine, not a bug
    """The machine or the agent of a lane is gone; ``again`` says that the lane can continue with a new agent."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


@dataclass(frozen=True)
class _Ended:
    """The end of a lane, or of its agent: the reason, and the unfinished part of its group."""

    lane: str
    problem: BaseException
    cells: tuple[Cell, ...] = ()
    skipped: Mapping[Cell, str] | None = None


class Lanes:
    """Runs groups on several executors at once; ``lanes`` maps their names to them."""

    def __init__(self, lanes: Mapping[str, Lane]) -> None:
        self._lanes = dict(lanes)
        self._tasks: SimpleQueue[Group | None] = SimpleQueue()
        #: From the lanes; None means that a lane is free.
        self._reports: SimpleQueue[Record | _Ended | None] = SimpleQueue()
        self._free = 0
        self._unfinished: deque[Group] = deque()
        self._losses: Counter[Cell] = Counter()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        """Yield records as the lanes finish them; raise WorkerError if no lane is left."""
        self._start()
        fresh, owed = iter(groups), 0
        while True:
            while self._free and (group := self._unfinished.popleft() if self._unfinished else next(fresh, None)):
                self._tasks.put(group)
                self._free -= 1
                owed += len(group[0])
            if not owed and not self._unfinished:  # ending needs no free lane
                if (group := next(fresh, None)) is None:
                    return
                self._unfinished.append(group)
                continue
            report = self._reports.get()
            if report is None:
                self._free += 1
            elif isinstance(report, Record):
                owed -= 1
                yield report
            elif not self._closed:
                owed -= len(report.cells)
                yield from self._end(report)
                if not self._lanes and (self._unfinished or next(fresh, None)):
                    raise WorkerError(
                        f"the last machine is lost ({report.problem}); finished cells are kept, continue with --resume"
                    )

    def cancel(self) -> None:
        self._stop()
        for lane in list(self._lanes.values()):
            lane.cancel()

    def close(self) -> None:
        for lane in list(self._lanes.values()):  # first: processes die with the thread that started them
            lane.close()
        self._stop()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        """Start the threads, once; they live as long as the lanes: a worker dies with the thread that made it."""
        if not self._threads:
            for name in self._lanes:
                self._threads.append(threading.Thread(target=self._work, args=(name,), name=name, daemon=True))
            for thread in self._threads:
                thread.start()

    def _stop(self) -> None:
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)

    def _work(self, name: str) -> None:
        lane = self._lanes[name]
        try:
            lane.open()
        except BaseException as problem:
            self._reports.put(_Ended(name, problem))
            return
        while True:
            self._reports.put(None)
            group = self._tasks.get()
            if group is None or self._closed:
                return
            left = {cell.id: cell for cell in group[0]}  # by id, not by cell: --batch max fills in the batch
            try:
                for record in lane.run([group]):
                    left.pop(record.cell.id, None)
                    self._reports.put(record)
            except BaseException as problem:
                self._reports.put(_Ended(name, problem, tuple(left.values()), group[1]))
                if not (isinstance(problem, LaneLost) and problem.again):
                    return

    def _end(self, ended: _Ended) -> Iterator[Record]:
        """Give the unfinished cells of a lost lane to the others; yield the records of cells that are given up."""
        problem = ended.problem
        if not isinstance(problem, LaneLost):
            raise problem
        if not problem.again:
            self._lanes.pop(ended.lane).cancel()
        rest = "started again" if problem.again else f"{len(self._lanes)} of {len(self._threads)} left"
        warn(f"{ended.lane}: {problem}; {rest}, and its unfinished cells are measured again")
        self._losses.update(ended.cells)
        again = tuple(cell for cell in ended.cells if self._losses[cell] < MOST_LOSSES)
        # On their last try cells go alone, so that only the cell that kills its machine is given up.
        alone = any(self._losses[cell] == MOST_LOSSES - 1 for cell in again)
        for cells in ((cell,) for cell in again) if alone else [again] if again else []:
            self._unfinished.append((cells, ended.skipped or {}))
        for cell in ended.cells:
            if cell not in again:
                reason = f"{problem}, {MOST_LOSSES} times"
                yield Record(cell=cell, status="crashed", reason=reason, started_at=utc_now())
