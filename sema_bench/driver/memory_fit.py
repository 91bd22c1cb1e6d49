"""Which cells can fit on this device, by the forecast of their memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sema_bench.driver.local import LocalExecutor
from sema_bench.machine.device_memory import WORKER_BYTES, capacity_bytes
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record


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


def unfit(plan: Plan, cells: Sequence[Cell], capacity_bytes: int) -> dict[Cell, str]:
    """Return cell → why it cannot run, for those of ``cells`` whose predicted memory no worker has.

    Of each variant the largest size is predicted first, and smaller ones only until one fits.
    """
    curves: dict[tuple[object, ...], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.resolution.pixels):
        if cell.batch_policy == "fixed":
            curves.setdefault(cell.variant, []).append(cell)
    found: dict[Cell, str] = {}
    executor = LocalExecutor(probes=("forecast",), sampling=plan.sampling)
    try:
        while curves:
            executor.submit([curve.pop() for curve in curves.values()], {})
            for record in executor.records():
                outlook = Outlook(record, capacity_bytes)
                if outlook.fits is False:
                    needs = (outlook.predicted_bytes or 0) + WORKER_BYTES
                    found[record.cell] = (
                        f"needs about {fmt.size(needs)} of memory, and a worker has {fmt.size(capacity_bytes)}"
                    )
                if outlook.fits is not False or not curves[record.cell.variant]:
                    del curves[record.cell.variant]
    finally:
        executor.cancel()
    return found


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
