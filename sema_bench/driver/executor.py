"""The protocol of an executor: submit cells, get their records as they come, cancel.

A group is measured side by side: its cells differ in the model alone, and a single cell is a group of one. Every
submitted cell gives exactly one record, unless it is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record

#: Called with the phase of a cell: (cell, "inspecting" | "warming up" | "sampling").
Listener = Callable[[Cell, str], None]


class Executor(Protocol):
    """Runs cells somewhere and streams their records back."""

    @property
    def width(self) -> int:
        """How many groups it can have under way at once; more than that wait where the skip rules still reach them."""

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        """Queue cells that are to be measured side by side.

        Cells in ``skipped`` (with the reason) are not run: they give a record of that status, with what can be known
        without running them.
        """

    def records(self) -> Iterator[Record]:
        """Yield the record of each submitted cell as it is finished, until none is left.

        More may be submitted meanwhile.
        """

    def cancel(self) -> None:
        """Drop what is queued and stop what runs; cells in flight give no record."""

    def close(self) -> None:
        """Release every process and device; the executor cannot be used afterwards."""
