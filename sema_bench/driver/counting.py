"""Count cells side by side if only their shapes are needed: a count cannot be disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.cpus import default_threads
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record


class Counters:
    """As many worker roles as there are CPUs, each for any model.

    A worker dies with the thread that started it, so the threads live as long as this object.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(default_threads())

    def records(
        self, group: Sequence[Cell], skipped: Mapping[Cell, str], inspect: Callable[[CellAttempt, str], None]
    ) -> Iterator[Record]:
        """Yield the record of each cell, in order; ``inspect`` does one with the worker of a role."""
        free: SimpleQueue[str] = SimpleQueue()
        for number in range(default_threads()):
            free.put(f"counter {number}")

        def count(cell: Cell) -> Record:
            attempt = CellAttempt(cell, skipped=skipped.get(cell, ""))
            role = free.get()
            try:
                inspect(attempt, role)
            except CellFailure as failure:
                return attempt.record(failure)
            finally:
                free.put(role)
            return attempt.record()

        yield from self._pool.map(count, group)

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._pool.shutdown(cancel_futures=True)
