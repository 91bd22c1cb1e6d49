"""Peak rates of this machine, measured in a worker of their own, and cells held against them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sema_bench.executors.draft import Draft
from sema_bench.peak_book import PeakBook
from sema_bench.probes.roofline import derive, share_of
from sema_bench.roofline import Peaks
from sema_bench.schema import Cell
from sema_bench.worker_process import CellFailure, WorkerProcess

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


def hold_against(book: PeakBook, draft: Draft) -> None:
    """Place a cell under the roofline.

    Raises:
        CellFailure: it would lie above it, also by peaks that were measured again just now.
    """
    if draft.cell.step != "infer":
        return
    if draft.details.get("counting_notes"):
        draft.details["peaks"] = "no share of the roofline: the count is an upper bound (counting_notes)"
        return
    try:
        found = derive(draft.cell, draft.measurements, draft.traffic_bytes, book.of(draft.cell))
        if share_of(found) > 1:
            found = derive(draft.cell, draft.measurements, draft.traffic_bytes, book.again(draft.cell))
    except CellFailure as failure:
        draft.details["peaks"] = f"not measured: {failure.reason}"
        return
    draft.details |= found.details
    if share_of(found) > 1:
        raise CellFailure(
            "error",
            f"{share_of(found):.0%} of what this device can do at most: the count, the clock or the peak is wrong",
            worker_lost=False,
        )
    draft.measurements |= {m.metric: m for m in found.measurements}
