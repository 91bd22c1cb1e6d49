"""A cell being measured: its results so far, and the record made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sema_bench.driver.worker_process import CellFailure
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.files import utc_now


@dataclass(eq=False)
class CellAttempt:
    """A cell being measured.

    Attributes:
        skipped: why it is not run, or ""; metrics that follow from shapes are still measured.
        timer: role of the worker that times it; each copy of a cell has its own.
        spent_s: wall time of its requests.
        counted_from_s: ``spent_s`` at the start of the current part: the wall limit holds for each part.
        alone: True if it is timed without neighbours.
    """

    cell: Cell
    skipped: str = ""
    timer: str = "timer"
    started_at: str = field(default_factory=utc_now)
    spent_s: float = 0.0
    counted_from_s: float = 0.0
    measurements: dict[str, Measurement] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    alone: bool = False

    def __post_init__(self) -> None:
        if self.cell.batch_policy == "max":  # it fills the memory
            self.alone = True

    def add(self, measurements: Iterable[Measurement], details: Mapping[str, Any] | None = None) -> None:
        self.measurements |= {m.metric: m for m in measurements}
        self.details |= details or {}

    def begin_part(self) -> None:
        """Count the wall limit from here."""
        self.counted_from_s = self.spent_s

    def halve(self, failure: CellFailure) -> bool:
        """Halve the batch if memory ran out and the batch is ours to choose; return True if halved."""
        if failure.status != "oom" or self.cell.batch_policy != "max" or self.cell.batch < 2:
            return False
        self.cell = dataclasses.replace(self.cell, batch=self.cell.batch // 2)
        self.measurements = {}
        self.begin_part()
        self.details["batches_tried"] = [*self.details.get("batches_tried", []), self.cell.batch]
        return True

    def again_alone(self) -> CellAttempt:
        """Copy this attempt, to be timed again without neighbours."""
        return dataclasses.replace(self, counted_from_s=self.spent_s, alone=True)

    def value(self, metric: str) -> float:
        """Return the measured value of ``metric``; 0 if there is none."""
        measurement = self.measurements.get(metric)
        return 0.0 if measurement is None else measurement.value

    def record(self, failure: CellFailure | None = None) -> Record:
        """Make the record of the cell; ``failure`` ended it unless it was skipped."""
        status, reason = ("skipped", self.skipped) if self.skipped else ("ok", "")
        if failure and not self.skipped:
            status, reason = failure.status, failure.reason
            self.details |= failure.details
        return Record(
            cell=self.cell,
            status=status,
            reason=reason,
            measurements=self.measurements,
            details=self.details,
            started_at=self.started_at,
            duration_s=round(self.spent_s, 3),
        )
