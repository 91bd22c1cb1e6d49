"""Peaks of this machine, measured once per environment and kept in the user's cache folder.

The key is the environment's fingerprint with device, dtype, TF32, threads and allocator. Peaks are measured again if
the cache cannot be read or could not be written; nothing else depends on it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from sema_bench.analysis.roofline import Peaks
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import StoreError
from sema_bench.spec.cell import Cell
from sema_bench.store.files import atomic_write, cache_folder

#: Measures the peaks that hold for a cell.
Measure = Callable[[Cell], Peaks]


class PeakCache:
    """The peaks that cells are checked against.

    Args:
        fingerprint: of the environment.
        measure: called once per device, dtype, TF32 and threads, and again on demand.
        folder: where peaks are kept between runs.
    """

    def __init__(self, fingerprint: str, measure: Measure, *, folder: Path | None = None) -> None:
        self._measure = measure
        self._path = (folder or cache_folder()) / f"peaks-{fingerprint}.json"
        self._known = self._load()
        self._failed: dict[str, CellFailure] = {}

    def of(self, cell: Cell) -> Peaks:
        """Return the peaks for ``cell``, measured if they are not known.

        Raises:
            CellFailure: they could not be measured.
        """
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
        self._known[key] = peaks
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


def _key(cell: Cell) -> str:
    return f"{cell.device}/{cell.dtype}{'+tf32' if cell.tf32 else ''}/t{cell.threads}/{cell.allocator}"
