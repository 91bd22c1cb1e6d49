"""Peak rates of this machine, measured in a worker, and the check of cells against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sema_bench.analysis.roofline import Peaks
from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.peak_cache import PeakCache
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.spec.cell import Cell
from sema_bench.worker.probes.roofline import derive, share_of
from sema_bench.worker.protocol import MeasurePeaks

#: Some ten shapes at half a second each, on a slow machine.
LIMIT_S = 300.0


def measure_in_worker(worker_command: Sequence[str] = ()) -> Callable[[Cell], Peaks]:
    """Return a function that measures the peaks for a cell: same device, dtype, TF32, allocator and threads."""

    def measure(cell: Cell) -> Peaks:
        worker = WorkerProcess(allocator=cell.allocator, threads=cell.threads, command=worker_command)
        try:
            worker.wait_until_ready()
            return worker.ask(MeasurePeaks(cell.device, cell.dtype, cell.tf32, cell.threads), timeout_s=LIMIT_S)
        finally:
            worker.close()

    return measure


def check_against_roofline(peaks: PeakCache, attempt: CellAttempt, traffic_bytes: float) -> None:
    """Place a cell under the roofline.

    Args:
        peaks: of this machine; measured if they are not known, and again if the cell exceeds them.
        attempt: the cell, with its measurements.
        traffic_bytes: bytes that a step moves at least.

    Raises:
        CellFailure: the cell would lie above the roofline, also by peaks that were just measured again.
    """
    if attempt.cell.step != "infer":
        return
    if attempt.details.get("counting_notes"):
        attempt.details["peaks"] = "no share of the roofline: the count is an upper bound (counting_notes)"
        return
    try:
        found = derive(attempt.cell, attempt.measurements, traffic_bytes, peaks.of(attempt.cell))
        if share_of(found) > 1:
            found = derive(attempt.cell, attempt.measurements, traffic_bytes, peaks.again(attempt.cell))
    except CellFailure as failure:
        attempt.details["peaks"] = f"not measured: {failure.reason}"
        return
    attempt.add((), found.details)
    if share_of(found) > 1:
        raise CellFailure(
            "error",
            f"{share_of(found):.0%} of what this device can do at most: the count, the clock or the peak is wrong",
        )
    attempt.add(found.measurements)
