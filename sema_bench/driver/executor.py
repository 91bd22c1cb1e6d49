"""The protocol of an executor: it takes groups of cells and yields a record of each cell.

A group is measured side by side: its cells differ only in the model, and a single cell is a group of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record

#: Cells to measure side by side, and cell → reason for those to skip: these get a record of what is known without
#: running them.
Group = tuple[tuple[Cell, ...], Mapping[Cell, str]]


class Listener(Protocol):
    """Follows the cells."""

    def __call__(self, cell: Cell, phase: str, share: float = 0.0, /) -> None:
        """Note that ``cell`` is ``inspecting``, ``warming up``, ``sampling``, …, and what share of that is done."""


def ignore(cell: Cell, phase: str, share: float = 0.0, /) -> None:
    """Listen to nothing."""


class Executor(Protocol):
    """Runs cells somewhere and streams their records back."""

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        """Yield one record for each cell as it is finished.

        Take a group only when it can start: by then the records of smaller sizes decide which of its cells to skip.
        """

    def cancel(self) -> None:
        """Stop everything now; cells in flight give no record."""

    def close(self) -> None:
        """Release every process and device; the executor cannot be used afterwards."""
