"""Cells of which nothing but shapes is wanted, counted side by side: that cannot be disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from sema_bench.environment import default_threads
from sema_bench.executors.draft import Draft
from sema_bench.schema import Cell, Record
from sema_bench.worker_process import CellFailure


class Counters:
    """As many worker roles as there are CPUs, each for any model.

    Its threads live as long as it does: a worker dies with the thread that made it.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(default_threads())

    def records(
        self, group: Sequence[Cell], skipped: Mapping[Cell, str], inspect: Callable[[Draft, str], None]
    ) -> Iterator[Record]:
        """Yield the record of each cell, in order; ``inspect`` does one with the worker of a role."""
        free: SimpleQueue[str] = SimpleQueue()
        for number in range(default_threads()):
            free.put(f"counter {number}")

        def count(cell: Cell) -> Record:
            draft = Draft(cell)
            role = free.get()
            try:
                inspect(draft, role)
            except CellFailure as failure:
                return draft.failed(failure)
            finally:
                free.put(role)
            return draft.record("skipped", skipped[cell]) if cell in skipped else draft.record()

        yield from self._pool.map(count, group)

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._pool.shutdown(cancel_futures=True)
