"""Measure the peak rates of this machine once per environment, cache them, and check cells against them.

Peaks are measured again if the cache cannot be read or could not be written; nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from sema_bench.analysis.roofline import Peaks
from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.errors import StoreError
from sema_bench.machine.devices import gpu_identity
from sema_bench.spec.cell import Cell
from sema_bench.store.files import atomic_write, cache_folder
from sema_bench.worker.probes.roofline import derive, share_of
from sema_bench.worker.protocol import MeasurePeaks

#: Some ten shapes at half a second each, on a slow machine.
LIMIT_S = 300.0
#: Winograd's algorithm computes a tile of 4×4 outputs of a 3×3 convolution with 36 products instead of 144. (cuDNN's
#: kernels ``winograd_nonfused…4x4`` do so; those with tiles of 2×2 save less.)
_WINOGRAD = 144 / 36
#: A measured peak never exceeds the true one: clocks change, and neighbours take part of the machine. On two busy cores
#: seven measurements gave 38 to 238 GFLOP/s. So for a cell far above the peak, the peak is measured three times more. A
#: cell up to this factor above the best of them is taken to run at the peak.
_UNCERTAINTY = 1.1


def measure_peaks(cell: Cell, *, worker_command: Sequence[str] = ()) -> Peaks:
    """Measure the peaks for a cell in a worker: same device, dtype, TF32, allocator and threads."""
    worker = WorkerProcess(allocator=cell.allocator, threads=cell.threads, command=worker_command)
    with contextlib.closing(worker):
        return worker.ask(MeasurePeaks(cell), timeout_s=LIMIT_S)


class PeakCache:
    """Peaks of the environment with this ``fingerprint``, to check cells against."""

    def __init__(self, fingerprint: str, measure: Callable[[Cell], Peaks], *, folder: Path | None = None) -> None:
        self._measure = measure
        self._path = (folder or cache_folder()) / f"peaks-{fingerprint}.json"
        self._known = self._load()
        self._failed: dict[str, CellFailure] = {}

    def of(self, cell: Cell) -> Peaks:
        """Return the peaks for ``cell``, measured if they are unknown, or raise CellFailure."""
        key = _key(cell)
        if key in self._failed:
            raise self._failed[key]
        if key not in self._known:
            try:
                self._keep(key, self._measure(cell))
            except CellFailure as failure:
                self._failed[key] = failure
                raise
        return self._known[key]

    def again(self, cell: Cell) -> Peaks:
        """Measure once more and return the best rates seen so far: the machine may have been slow before."""
        best = self.of(cell).best_of(self._measure(cell))
        self._keep(_key(cell), best)
        return best

    def _keep(self, key: str, peaks: Peaks) -> None:
        self._known = {**self._load(), **self._known, key: peaks}  # other lanes have measured other cards
        body = {key: value.to_json() for key, value in sorted(self._known.items())}
        with contextlib.suppress(OSError, StoreError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, json.dumps(body, indent=1) + "\n")

    def _load(self) -> dict[str, Peaks]:
        try:
            body = json.loads(self._path.read_text(encoding="utf-8"))
            return {str(key): Peaks.from_json(value) for key, value in body.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}


def check_against_roofline(peaks: PeakCache, attempt: CellAttempt, traffic_bytes: float) -> None:
    """Place a cell under the roofline; one step moves at least ``traffic_bytes``.

    A cell may lie above the roofline by as much as the peaks are uncertain. So may convolutions that cuDNN computes by
    Winograd's algorithm: their MACs are those of the definition. Such a cell keeps its share, with a note.

    Raises:
        CellFailure: the cell lies further above the roofline, even after the peaks were measured again.
    """
    if attempt.cell.step != "infer":
        return
    if attempt.details.get("counting_notes"):
        attempt.details["peaks"] = "no share of the roofline: the count is an upper bound (counting_notes)"
        return
    most = _most(attempt) * _UNCERTAINTY
    under = functools.partial(derive, attempt.measurements, traffic_bytes, batch=attempt.cell.batch)
    try:
        findings = under(peaks.of(attempt.cell))
        for limit in (1.0, most, most):
            if share_of(findings) > limit:
                findings = under(peaks.again(attempt.cell))
    except CellFailure as failure:
        attempt.details["peaks"] = f"not measured: {failure.reason}"
        return
    attempt.add((), findings.details)
    share = share_of(findings)
    if share > most:
        raise CellFailure(
            "error", f"{share:.0%} of what this device can do at most: the count, the clock or the peak is wrong"
        )
    if share > 1:
        note = "share of the roofline: this cell ran as fast as the measured peak, or faster; latency is unaffected"
        if attempt.details.get("winograd"):
            note = "above the measured roofline: cuDNN may compute 3×3 convolutions with fewer products (Winograd)"
        attempt.add((), {"counting_notes": [note]})
    attempt.add(findings.measurements)


def _most(attempt: CellAttempt) -> float:
    """Return the largest possible share of the roofline: above 1 if cuDNN may use Winograd's algorithm."""
    if not attempt.details.get("winograd"):
        return 1.0
    convolutions = attempt.value("macs_convolution") / attempt.value("macs")
    return 1 / (1 - convolutions * (1 - 1 / _WINOGRAD))


def _key(cell: Cell) -> str:
    """Name all that the peaks depend on; ``cuda:0`` is a different card in each lane, so use the card's UUID."""
    device = gpu_identity(cell.device) if cell.device.startswith("cuda") else cell.device
    return f"{device}/{cell.dtype}{'+tf32' if cell.tf32 else ''}/t{cell.threads}/{cell.allocator}"
