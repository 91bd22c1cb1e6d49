"""Run executors side by side, each in its own thread: a group goes to the first lane that is free.

A lane is one device or one machine, and no two cells are timed on it at once. If a lane is lost, another one measures
the cells that it still had. A cell that fails by itself has its record and is never tried again.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Protocol

from sema_bench.driver.executor import Executor
from sema_bench.errors import WorkerError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.store.files import utc_now

#: A cell that has lost this many lanes is not tried again: it may be the cause.
MOST_LOSSES = 3

Group = tuple[tuple[Cell, ...], Mapping[Cell, str]]


class Lane(Executor, Protocol):
    """An executor that may have to wait for its machine."""

    def open(self) -> None:
        """Wait until a group can be measured; called once, in the thread of the lane.

        Raises:
            LaneLost: the machine will not come.
        """


class LaneLost(Exception):  # noqa: N818 - a fact about a machine, not a bug
    """The machine or the agent of a lane is gone; its cells may be measured again.

    Attributes:
        again: whether the lane can go on with a new agent.
    """

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class Lanes:
    """Runs groups on several executors at once.

    Args:
        lanes: name → executor. One may raise ``LaneLost`` from ``submit`` or ``records``.
        warn: shows which lanes are lost.
    """

    def __init__(self, lanes: Mapping[str, Lane], *, warn: Callable[[str], None] = lambda message: None) -> None:
        self._lanes = dict(lanes)
        self._warn = warn
        self._queue: deque[Group] = deque()
        self._changed = threading.Condition()
        self._results: SimpleQueue[Record | _Ended] = SimpleQueue()
        self._owed = 0
        self._losses: Counter[Cell] = Counter()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def width(self) -> int:
        return len(self._lanes)

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        with self._changed:
            self._queue.append((tuple(group), skipped))
            self._owed += len(group)
            self._changed.notify()

    def records(self) -> Iterator[Record]:
        """Yield records as the lanes finish them.

        Raises:
            WorkerError: no lane is left.
        """
        self._start()
        while self._owed:
            result = self._results.get()
            if isinstance(result, _Ended):
                self._end(result)
                continue
            self._owed -= 1
            yield result

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
        if self._threads:
            return
        for name in self._lanes:
            self._threads.append(threading.Thread(target=self._work, args=(name,), name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _next(self) -> Group | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._queue)
            return None if self._closed else self._queue.popleft()

    def _work(self, name: str) -> None:
        lane = self._lanes[name]
        try:
            lane.open()
        except BaseException as problem:
            self._results.put(_Ended(name, problem, ((), {})))
            return
        while (group := self._next()) is not None:
            left = {cell.id: cell for cell in group[0]}  # not by cell: --batch max fills in its batch
            try:
                lane.submit(*group)
                for record in lane.records():
                    left.pop(record.cell.id, None)
                    self._results.put(record)
            except BaseException as problem:
                self._results.put(_Ended(name, problem, (tuple(left.values()), group[1])))
                if not (isinstance(problem, LaneLost) and problem.again):
                    return

    def _end(self, ended: _Ended) -> None:
        """Give the unfinished cells of a lost lane to the others."""
        if self._closed:
            return
        if not isinstance(ended.problem, LaneLost):
            raise ended.problem
        if not ended.problem.again:
            self._lanes.pop(ended.lane).cancel()
        cells, skipped = ended.group
        self._losses.update(cells)
        given_up = [cell for cell in cells if self._losses[cell] >= MOST_LOSSES]
        again = [cell for cell in cells if cell not in given_up]
        for cell in given_up:
            reason = f"{ended.problem}, {MOST_LOSSES} times"
            self._results.put(Record(cell=cell, status="crashed", reason=reason, started_at=utc_now()))
        rest = "started again" if ended.problem.again else f"{len(self._lanes)} of {len(self._threads)} left"
        self._warn(f"{ended.lane}: {ended.problem}; {rest}, and its unfinished cells are measured again")
        if not self._lanes and self._owed > len(given_up):
            raise WorkerError(f"the last machine is lost ({ended.problem}); finished cells are kept, --resume goes on")
        # At their last try they go alone, so that only the cell that kills its machine is given up.
        alone = any(self._losses[cell] == MOST_LOSSES - 1 for cell in again)
        groups = [(cell,) for cell in again] if alone else [tuple(again)] if again else []
        with self._changed:
            self._queue.extendleft((group, skipped) for group in groups)
            self._changed.notify_all()


class _Ended:
    """The end of a lane's thread: its lane, the reason, and the unfinished part of its group."""

    def __init__(self, lane: str, problem: BaseException, group: Group) -> None:
        self.lane, self.problem, self.group = lane, problem, group
