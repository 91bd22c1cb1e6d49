"""Inspect a cell before it is timed: choose the largest batch if asked to, count MACs, measure memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.memory_fit import largest_batch
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.worker.protocol import Inspect, Release


class Inspector:
    """Runs inspect probes on cells."""

    def __init__(self, workers: WorkerPool, listener: Listener) -> None:
        self._workers, self._listener = workers, listener

    def at_its_batch(self, attempt: CellAttempt, probes: Sequence[str], role: str = "inspector") -> None:
        """Run ``probes`` on a cell, or raise CellFailure; first choose ``--batch max``, then halve it until it fits."""
        if attempt.cell.batch == 0:
            self._choose_batch(attempt, role)
        while True:
            try:
                self.inspect(attempt, probes, role)
            except CellFailure as failure:
                if not attempt.halve(failure):
                    raise
            else:
                attempt.begin_part()
                return

    def inspect(
        self, attempt: CellAttempt, probes: Sequence[str], role: str = "inspector", *, shapes: bool = False
    ) -> None:
        """Run ``probes`` on a cell, or raise CellFailure; probes of ``shapes`` alone leave nothing to free."""
        if not probes:
            return
        self._listener(attempt.cell, "inspecting")
        inspected = self._workers.ask(role, attempt, Inspect(self._workers.workload(attempt.cell), tuple(probes)))
        attempt.add(inspected.measurements, inspected.details)
        if role == "inspector" and attempt.cell.device.startswith("cuda"):
            self._workers.end(role, attempt.cell)  # only the end of the process frees its context
        elif not shapes:
            with contextlib.suppress(CellFailure):  # the results are in; a worker that fails now is replaced
                self._workers.ask(role, attempt, Release())

    def _choose_batch(self, attempt: CellAttempt, role: str) -> None:
        self._listener(attempt.cell, "looking for the largest batch")
        self._workers.keep_only(())  # the others hold memory
        free = self._workers.free_bytes(role, attempt)
        if free is None:
            raise CellFailure("error", "free memory is unknown on this device; pass a number to --batch")

        def predict(batch: int) -> float:
            workload = self._workers.workload(dataclasses.replace(attempt.cell, batch=batch))
            forecast = self._workers.ask(role, attempt, Inspect(workload, ("forecast",)))
            for measurement in forecast.measurements:
                if measurement.metric == "predicted_peak_bytes":
                    return measurement.value
            why = forecast.details.get("not_forecast", "no reason")
            raise CellFailure("error", f"its memory cannot be predicted ({why}); pass a number to --batch")

        batch = largest_batch(predict, free)
        attempt.cell = dataclasses.replace(attempt.cell, batch=batch)
        attempt.details["batches_tried"] = [batch]
