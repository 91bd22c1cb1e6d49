"""Manage the worker processes of a run by role and model: start each at its first request, replace it when lost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.memory_fit import capacity_bytes
from sema_bench.driver.worker_process import PATIENCE_S, CellFailure, WorkerProcess
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import MORE_TIME, Sampling
from sema_bench.worker.protocol import A, ReadFreeMemory, Request, WorkloadSpec

#: First words of the roles whose worker serves all models.
_SHARED = ("counter", "evaluator", "yardstick")
#: Requests in words.
_STEPS = {
    "inspect": "counting, memory and forecasts",
    "prepare": "building and warm-up",
    "sample": "one visit of sampling",
    "evaluate": "a batch of images",
    "peaks": "measuring the peaks of the device",
}


class WorkerPool:
    """Holds workers. An ``inspector`` or ``timer`` has one model; the roles in ``_SHARED`` serve all.

    ``weights_of`` names the file with the weights of a cell, None for random ones.
    """

    def __init__(
        self,
        sampling: Sampling,
        worker_command: Sequence[str] = (),
        weights_of: Callable[[Cell], Path | None] = lambda cell: None,
    ) -> None:
        self._sampling, self._weights_of, self._worker_command = sampling, weights_of, worker_command
        self._workers: dict[tuple[str, tuple[Any, ...]], WorkerProcess] = {}
        self._cache: tempfile.TemporaryDirectory[str] | None = None
        self._stopped = False

    def start(self, role: str, cell: Cell) -> WorkerProcess:
        """Return the worker of this role for ``cell``; start it if there is none. It may not be ready yet."""
        if self._stopped:
            raise CellFailure("crashed", "the run was stopped")
        key = _key(role, cell)
        if key not in self._workers:
            self._workers[key] = WorkerProcess(
                allocator=cell.allocator,
                threads=cell.threads,
                command=self._worker_command,
                environment={COMPILER_CACHE: self._cache_folder()} if cell.compiled else None,
            )
        return self._workers[key]

    def _cache_folder(self) -> str:
        """Make a compiler cache for this run alone: a shared one would hide the time to compile."""
        if self._cache is None:
            self._cache = tempfile.TemporaryDirectory(prefix="sema-bench-compiled-", ignore_cleanup_errors=True)
        return self._cache.name

    def has(self, role: str, cell: Cell) -> bool:
        return _key(role, cell) in self._workers

    def ask(self, role: str, attempt: CellAttempt, request: Request[A]) -> A:
        """Send a request to the worker of this role, within what is left of the cell's wall time.

        Raises:
            CellFailure: the request failed; the worker is replaced, since the error may have left it in a bad state.
        """
        worker = self.start(role, attempt.cell)
        started = time.monotonic()
        try:
            worker.wait_until_ready()
            started = time.monotonic()  # starting up is not the cell's time
            return worker.ask(request, timeout_s=max(1.0, self.time_left(attempt)))
        except CellFailure as failure:
            self.end(role, attempt.cell, force=True)
            if failure.status == "timeout":
                limit = self._sampling.wall_limit_s(attempt.cell.mode)
                reason = f"{_STEPS.get(request.do, request.do)} took longer than {limit:.0f} s; {MORE_TIME}"
                raise CellFailure("timeout", reason) from None
            raise
        finally:
            attempt.spent_s += time.monotonic() - started

    def free_bytes(self, role: str, attempt: CellAttempt) -> int | None:
        """Return the free memory of a cell's device, None on meta; without NVML the worker of this role reads it."""
        device = attempt.cell.device
        free = capacity_bytes(device)
        if free is None and device.startswith("cuda"):
            free = self.ask(role, attempt, ReadFreeMemory(device)).free_bytes
        return free

    def workload(self, cell: Cell) -> WorkloadSpec:
        return WorkloadSpec(cell, self._sampling.seed, self._weights_of(cell))

    def time_left(self, attempt: CellAttempt) -> float:
        """Return the wall time left to this part of the cell, in seconds."""
        return self._sampling.wall_limit_s(attempt.cell.mode) - (attempt.spent_s - attempt.counted_from_s)

    def end(self, role: str, cell: Cell, *, force: bool = False) -> None:
        """End the worker of this role for ``cell``, if there is one."""
        if worker := self._workers.pop(_key(role, cell), None):
            worker.kill() if force else worker.close()

    def keep_only(self, cells: Iterable[Cell]) -> None:
        """End the workers of all models but those of ``cells``; the shared workers stay."""
        wanted = {(), *(cell.variant for cell in cells)}
        _close([self._workers.pop(key) for key in list(self._workers) if key[1] not in wanted])

    def stop(self) -> None:
        """End all workers by force, and start none again."""
        self._stopped = True
        for worker in list(self._workers.values()):  # a thread may drop one meanwhile
            worker.kill()
        self._workers.clear()
        self.close()

    def close(self) -> None:
        """End all workers."""
        _close(list(self._workers.values()))
        self._workers.clear()
        if self._cache is not None:
            self._cache.cleanup()
            self._cache = None


def _close(workers: Sequence[WorkerProcess]) -> None:
    """End workers side by side: a dozen that imported torch take seconds one after the other."""
    deadline = time.monotonic() + PATIENCE_S
    for worker in workers:
        worker.dismiss()
    for worker in workers:
        worker.close(patience_s=max(0.0, deadline - time.monotonic()))


def _key(role: str, cell: Cell) -> tuple[str, tuple[Any, ...]]:
    return (role, () if role.startswith(_SHARED) else cell.variant)
