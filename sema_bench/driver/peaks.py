"""Peak rates of this machine, measured in a worker of their own, and cells held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sema_bench.analysis.roofline import Peaks
from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.peak_cache import PeakCache
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.spec.cell import Cell
from sema_bench.worker.probes.roofline import derive, share_of

#: Some ten shapes at half a second each, on a slow machine.
LIMIT_S = 300.0


def measure_in_worker(worker_command: Sequence[str] = ()) -> Callable[[Cell], Peaks]:
    """Return what measures the peaks for a cell: same device, dtype, TF32, allocator and, above all, threads."""

    def measure(cell: Cell) -> Peaks:
        worker = WorkerProcess(allocator=cell.allocator, threads=cell.threads, command=worker_command)
        try:
            worker.wait_until_ready()
            request = {"device": cell.device, "dtype": cell.dtype, "tf32": cell.tf32, "threads": cell.threads}
            return Peaks.from_json(worker.ask("peaks", timeout_s=LIMIT_S, **request))
        except (ValueError, KeyError, TypeError) as problem:
            raise CellFailure("error", f"peak rates: {problem}", worker_lost=False) from None
        finally:
            worker.close()

    return measure


def check_against_roofline(book: PeakCache, attempt: CellAttempt) -> None:
    """Place a cell under the roofline.

    Raises:
        CellFailure: it would lie above it, also by peaks that were measured again just now.
    """
    if attempt.cell.step != "infer":
        return
    if attempt.details.get("counting_notes"):
        attempt.details["peaks"] = "no share of the roofline: the count is an upper bound (counting_notes)"
        return
    try:
        found = derive(attempt.cell, attempt.measurements, attempt.traffic_bytes, book.of(attempt.cell))
        if share_of(found) > 1:
            found = derive(attempt.cell, attempt.measurements, attempt.traffic_bytes, book.again(attempt.cell))
    except CellFailure as failure:
        attempt.details["peaks"] = f"not measured: {failure.reason}"
        return
    attempt.details |= found.details
    if share_of(found) > 1:
        raise CellFailure(
            "error",
            f"{share_of(found):.0%} of what this device can do at most: the count, the clock or the peak is wrong",
            worker_lost=False,
        )
    attempt.measurements |= {m.metric: m for m in found.measurements}
