"""An executor that measures nothing: a model's name gives the seconds that its cell takes, and the outcome.

``s0.05`` takes 50 ms; ``fail0.05`` ends in an error after 50 ms. A lane may be lost at its n-th cell.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from sema_bench.cluster.lanes import LaneLost
from sema_bench.driver.executor import Group
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record


class FakeLane:
    """Args: name of the lane; ``lost_at``: number of the cell at which it dies; ``again``: it comes back."""

    def __init__(
        self,
        name: str,
        *,
        lost_at: int | None = None,
        again: bool = False,
        breaks: Callable[[Cell], BaseException | None] = lambda cell: None,
    ) -> None:
        self.name, self.lost_at, self.again, self.breaks = name, lost_at, again, breaks
        self.cells: list[Cell] = []
        self.busy_s = 0.0
        self.cancelled = threading.Event()

    def open(self) -> None:
        """Wait for nothing."""

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        for group, skipped in groups:
            for cell in group:
                if cell in skipped:
                    yield Record(cell=cell, status="skipped", reason=skipped[cell])
                    continue
                self.cells.append(cell)
                if problem := self.breaks(cell):
                    raise problem
                if self.lost_at == len(self.cells):
                    raise LaneLost("the machine is gone", again=self.again)
                match = re.fullmatch(r"(?P<kind>s|fail)(?P<seconds>[0-9.]+)(-\d+)?", cell.model)
                assert match is not None
                started = time.monotonic()
                if self.cancelled.wait(float(match["seconds"])):
                    return
                self.busy_s += time.monotonic() - started
                failed = match["kind"] == "fail"
                yield Record(
                    cell=cell,
                    status="error" if failed else "ok",
                    reason="as asked" if failed else "",
                    details={"node": self.name},
                )

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.cancelled.set()
