"""Which cells can fit on this device, by the forecast of their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sema_bench.device_memory import WORKER_BYTES, capacity_bytes
from sema_bench.executors.local import LocalExecutor
from sema_bench.plan import Plan
from sema_bench.schema import Cell, Record


@dataclass(frozen=True)
class Outlook:
    """A cell with what is known of its memory before it runs.

    Attributes:
        record: of the forecast: predicted bytes, or why there are none.
        capacity_bytes: what the device has free for it; None where there is no limit (meta).
    """

    record: Record
    capacity_bytes: int | None

    @property
    def cell(self) -> Cell:
        return self.record.cell

    @property
    def predicted_bytes(self) -> int | None:
        value = self.record.value("predicted_peak_bytes")
        return None if value is None else round(value)

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where nobody can tell."""
        if self.predicted_bytes is None or self.capacity_bytes is None:
            return None
        return self.predicted_bytes + WORKER_BYTES <= self.capacity_bytes

    @property
    def reason(self) -> str:
        """Why there is no prediction; empty where there is one."""
        return self.record.reason or str(self.record.details.get("not_forecast", ""))


def outlooks(plan: Plan, *, told: Callable[[Cell], None] = lambda cell: None) -> Iterator[Outlook]:
    """Predict the memory of every cell of ``plan``, in worker processes, without running any."""
    executor = LocalExecutor(probes=("forecast",), sampling=plan.sampling)
    try:
        free = {device: capacity_bytes(device) for device in {cell.device for cell in plan.cells}}
        for group in plan.groups:
            executor.submit(group, {})
            for record in executor.records():
                told(record.cell)
                yield Outlook(record, free[record.cell.device])
    finally:
        executor.cancel()
