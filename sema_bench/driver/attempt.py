"""A cell in work: what is known of it so far, and the record that comes of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.disturbance import Window
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.files import utc_now
from sema_bench.worker.probes.throughput import Samples


@dataclass(eq=False)
class CellAttempt:
    """A cell in work: what is known of it so far.

    ``spent_s`` is the wall time of its requests, ``counted_from_s`` where the current part of the cell began:
    the wall limit holds for inspection and for the timed part apart. ``copy`` tells drafts of one cell apart: each is
    timed in a process of its own.
    """

    cell: Cell
    copy: int = 0
    started_at: str = field(default_factory=utc_now)
    spent_s: float = 0.0
    counted_from_s: float = 0.0
    measurements: dict[str, Measurement] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    windows: list[Window] = field(default_factory=list)
    energy: list[Window] = field(default_factory=list)
    first_forward_s: float = 0.0
    compiled_afresh: bool = False
    latency_s: float = 0.0
    rounds: int = 0
    traffic_bytes: int = 0
    alone: bool = False

    def __post_init__(self) -> None:
        if self.cell.batch_policy == "max":  # it fills the memory
            self.alone = True

    @property
    def timer(self) -> str:
        """Role of the worker that times it."""
        return f"timer {self.copy}" if self.copy else "timer"

    def halve(self, failure: CellFailure) -> bool:
        """Go back to the start with half the batch, if memory ran out and the batch is ours to choose."""
        if failure.status != "oom" or self.cell.batch_policy != "max" or self.cell.batch < 2:
            return False
        self.cell = dataclasses.replace(self.cell, batch=self.cell.batch // 2)
        self.measurements, self.samples, self.windows, self.rounds = {}, Samples(), [], 0
        self.counted_from_s = self.spent_s
        self.details["batches_tried"] = [*self.details.get("batches_tried", []), self.cell.batch]
        return True

    def again_alone(self) -> CellAttempt:
        """Return this attempt ready to be timed afresh, without neighbours."""
        return dataclasses.replace(
            self, samples=Samples(), windows=[], rounds=0, counted_from_s=self.spent_s, alone=True
        )

    def value(self, metric: str) -> float:
        """Return what was measured of ``metric``, 0 where it was not."""
        measurement = self.measurements.get(metric)
        return 0.0 if measurement is None else measurement.value

    def record(self, status: str = "ok", reason: str = "") -> Record:
        """Return the record of the cell as it stands."""
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
        """Return the record of a cell that ended in ``failure``."""
        self.details |= failure.details
        return self.record(failure.status, failure.reason)
