"""Compare the free memory of a device with the needs of cells, of a batch, or of one more model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Executor
from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.devices import free_device_bytes, gpu_facts
from sema_bench.machine.host_memory import available_memory_bytes, memory_limit_bytes
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import MAX_BATCH, Cell
from sema_bench.spec.record import Environment, Record

#: Memory of a worker besides its tensors: torch itself on a CPU, a CUDA context on a GPU.
WORKER_BYTES = 2**29
#: Share of the free memory that a batch may fill: a forecast may be a few per cent low.
MEMORY_SHARE = 0.9
#: Share of the machine's memory that models measured side by side leave free.
_RESERVE = 0.1
#: A card's allocator may need this factor times what a model has reserved so far, plus these bytes for its context.
_DEVICE_FACTOR, _CONTEXT_BYTES = 1.2, 2**30


def capacity_bytes(device: str) -> int | None:
    """Return the free memory of ``device``; None on meta, which has no limit, and if it is unknown."""
    if device == "meta":
        return None
    return available_memory_bytes() if device == "cpu" else free_device_bytes(device)


def total_bytes(environment: Environment, device: str) -> int | None:
    """Return the memory of one device of the machines with ``environment``; None if it is unknown."""
    if device == "cpu":
        return int(environment.hardware["memory_gib"]) * 2**30
    card_bytes = gpu_facts(device, environment).get("memory_bytes")
    return None if card_bytes is None else int(card_bytes)


@dataclass(frozen=True)
class Outlook:
    """The memory that a cell will need, predicted before it runs.

    Attributes:
        record: result of the probe ``forecast``: predicted bytes, or why there are none.
        capacity_bytes: free memory of its device; None without a limit (meta).
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
        """True if it fits; None if that is unknown."""
        if self.predicted_bytes is None or self.capacity_bytes is None:
            return None
        return self.predicted_bytes + WORKER_BYTES <= self.capacity_bytes

    @property
    def reason(self) -> str:
        """Why there is no prediction; "" if there is one."""
        return self.record.reason or str(self.record.details.get("not_forecast", ""))


def unfit(cells: Sequence[Cell], forecaster: Executor, capacity_bytes: int) -> dict[Cell, str]:
    """Find the ``cells`` that need more than the ``capacity_bytes`` of a worker; map each to the reason.

    ``forecaster`` runs the probe ``forecast``, on the largest size of each variant first, until one fits.
    """
    curves: dict[tuple[object, ...], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.resolution.pixels):
        if cell.batch_policy == "fixed":
            curves.setdefault(cell.variant, []).append(cell)
    reasons: dict[Cell, str] = {}
    while curves:
        for record in forecaster.run([(tuple(curve.pop() for curve in curves.values()), {})]):
            outlook = Outlook(record, capacity_bytes)
            if outlook.fits is False:
                needs = (outlook.predicted_bytes or 0) + WORKER_BYTES
                reasons[record.cell] = (
                    f"needs about {fmt.size(needs)} of memory, and a worker has {fmt.size(capacity_bytes)}"
                )
            if outlook.fits is not False or not curves[record.cell.variant]:
                del curves[record.cell.variant]
    return reasons


def largest_batch(predict: Callable[[int], float], free_bytes: int) -> int:
    """Return the largest power of two whose peak fits into ``free_bytes``, worker and reserve included.

    ``predict`` maps a batch to its peak in bytes; it is called for 1, 2 and the answer. If not even one image fits,
    raise CellFailure.
    """
    budget = MEMORY_SHARE * free_bytes - WORKER_BYTES
    one, two = predict(1), predict(2)
    if one > budget:
        raise CellFailure(
            "oom",
            f"one image is predicted to need {one / 2**30:.1f} GiB, and {max(0.0, budget) / 2**30:.1f} GiB are free",
        )
    batch = 1
    while batch < MAX_BATCH and one + (2 * batch - 1) * (two - one) <= budget:
        batch *= 2
    while batch > 1 and predict(batch) > budget:
        batch //= 2
    return batch


def fits_beside(attempt: CellAttempt, free_bytes: int) -> bool:
    """Check whether a model, as inspected, fits into ``free_bytes`` beside those already prepared."""
    if attempt.alone:
        return False
    if attempt.cell.device != "cpu":
        need = _DEVICE_FACTOR * attempt.value("peak_reserved_bytes") + _CONTEXT_BYTES
        return free_bytes > need
    need = max(attempt.value("rss_growth_bytes"), attempt.value("peak_memory_bytes"))
    return free_bytes > need + _RESERVE * memory_limit_bytes()
