"""Several executors side by side, each in a thread of its own: a group goes to the first lane that is free.

A lane is one device or one machine, and no two cells are timed on it at once. A lane that is lost gives the cells that
it owes back, and another measures them; a cell that fails by itself has its record and is never tried again.
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

#: A cell whose lane was lost this often is not tried again: it may be what kills them.
MOST_LOSSES = 3

Group = tuple[tuple[Cell, ...], Mapping[Cell, str]]


class Lane(Executor, Protocol):
    """An executor that may have to wait for what it runs on."""

    def open(self) -> None:
        """Return when a group can be measured; called once, in the thread of the lane.

        Raises:
            LaneLost: that will not be.
        """


class LaneLost(Exception):  # noqa: N818 - a fact about a machine, not a bug
    """What measured on a lane is gone; its cells may be measured again.

    Attributes:
        again: whether the lane itself can go on, with a new agent.
    """

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class Lanes:
    """Runs groups on several executors at once.

    Args:
        lanes: name → executor. One may raise ``LaneLost`` from ``submit`` or ``records``.
        warn: told of lanes that are lost.
    """

    def __init__(self, lanes: Mapping[str, Lane], *, warn: Callable[[str], None] = lambda message: None) -> None:
        self._lanes = dict(lanes)
        self._warn = warn
        self._queue: deque[Group] = deque()
        self._changed = threading.Condition()
        self._found: SimpleQueue[Record | _Ended] = SimpleQueue()
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
            found = self._found.get()
            if isinstance(found, _Ended):
                self._end(found)
                continue
            self._owed -= 1
            yield found

    def cancel(self) -> None:
        self._stop()
        for lane in list(self._lanes.values()):
            lane.cancel()

    def close(self) -> None:
        for lane in list(self._lanes.values()):  # first: what a thread has started dies with it
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
            self._found.put(_Ended(name, problem, ((), {})))
            return
        while (group := self._next()) is not None:
            left = {cell.id: cell for cell in group[0]}  # not by cell: batch max has found its number
            try:
                lane.submit(*group)
                for record in lane.records():
                    left.pop(record.cell.id, None)
                    self._found.put(record)
            except BaseException as problem:
                self._found.put(_Ended(name, problem, (tuple(left.values()), group[1])))
                if not (isinstance(problem, LaneLost) and problem.again):
                    return

    def _end(self, ended: _Ended) -> None:
        """Give what a lost lane still owed to the others."""
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
            self._found.put(Record(cell=cell, status="crashed", reason=reason, started_at=utc_now()))
        rest = "started again" if ended.problem.again else f"{len(self._lanes)} of {len(self._threads)} left"
        self._warn(f"{ended.lane}: {ended.problem}; {rest}, and its unfinished cells are measured again")
        if not self._lanes and self._owed > len(given_up):
            raise WorkerError(f"the last machine is lost ({ended.problem}); finished cells are kept, --resume goes on")
        # Lost for the last time but one they go alone: only what kills its machine is to be given up.
        alone = any(self._losses[cell] == MOST_LOSSES - 1 for cell in again)
        groups = [(cell,) for cell in again] if alone else [tuple(again)] if again else []
        with self._changed:
            self._queue.extendleft((group, skipped) for group in groups)
            self._changed.notify_all()


class _Ended:
    """A thread ended: of which lane, why, and the group that it had under way."""

    def __init__(self, lane: str, problem: BaseException, group: Group) -> None:
        self.lane, self.problem, self.group = lane, problem, group
