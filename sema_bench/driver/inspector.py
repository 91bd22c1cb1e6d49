"""What is found of a cell before it is timed: its batch, where it is to have the largest, its counts and its memory."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.largest_batch import largest_batch
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.device_memory import capacity_bytes
from sema_bench.spec.record import Measurement


class Inspector:
    """Runs inspect probes on drafts, in workers.

    Args:
        workers: where.
        probes: names of the inspect probes of the run.
        listener: told what each cell is going through.
    """

    def __init__(self, workers: WorkerPool, probes: Sequence[str], listener: Listener) -> None:
        self._workers = workers
        self._probes = probes
        self._listener = listener

    def at_its_batch(self, attempt: CellAttempt, role: str = "inspector") -> None:
        """Inspect a cell; the batch of one that is to have the largest is chosen before, and halved until it fits.

        Raises:
            CellFailure: the cell ends here.
        """
        if attempt.cell.batch == 0:
            self._choose_batch(attempt, role)
        while True:
            try:
                self.inspect(attempt, self._probes, role)
            except CellFailure as failure:
                if not attempt.halve(failure):
                    raise
            else:
                attempt.counted_from_s = attempt.spent_s
                return

    def inspect(self, attempt: CellAttempt, probes: Sequence[str], role: str = "inspector") -> None:
        """Run ``probes`` on a cell.

        Raises:
            CellFailure: one of them failed.
        """
        if not probes:
            return
        self._listener(attempt.cell, "inspecting")
        answer = self._workers.ask(role, attempt, "inspect", probes=probes, **self._workers.request(attempt.cell))
        measurements = [Measurement(**{**m, "samples": tuple(m["samples"])}) for m in answer["measurements"]]
        attempt.measurements |= {m.metric: m for m in measurements}
        attempt.details |= answer["details"]
        with contextlib.suppress(CellFailure):  # the results are in; a worker that fails now is replaced
            self._workers.ask(role, attempt, "release")

    def _choose_batch(self, attempt: CellAttempt, role: str) -> None:
        self._listener(attempt.cell, "looking for the largest batch")
        self._workers.keep_only(())  # what they hold would be missing
        free = capacity_bytes(attempt.cell.device)
        if free is None:
            raise CellFailure("error", "nobody tells how much memory is free; give a batch", worker_lost=False)

        def predict(batch: int) -> float:
            request = self._workers.request(dataclasses.replace(attempt.cell, batch=batch))
            answer = self._workers.ask(role, attempt, "inspect", probes=["forecast"], **request)
            found = {m["metric"]: m["value"] for m in answer["measurements"]}
            if "predicted_peak_bytes" not in found:
                why = answer["details"].get("not_forecast", "no reason")
                raise CellFailure("error", f"no forecast of its memory ({why}); give a batch", worker_lost=False)
            return float(found["predicted_peak_bytes"])

        batch = largest_batch(predict, free)
        attempt.cell = dataclasses.replace(attempt.cell, batch=batch)
        attempt.details["batches_tried"] = [batch]
