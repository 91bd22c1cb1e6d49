"""Measure the accuracy of cells piece by piece, in one worker, with a bookmark from which to resume."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.errors import StoreError
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.store.files import write_own
from sema_bench.worker.protocol import Evaluate, Tally, from_json

ROLE = "evaluator"
#: How long a worker evaluates before it reports its progress.
PIECE_S = 5.0


class Evaluator:
    """Measures the accuracy of cells; the folder ``bookmarks`` holds the tallies of unfinished evaluations."""

    def __init__(self, workers: WorkerPool, settings: EvaluationSettings, bookmarks: Path, listener: Listener) -> None:
        self._workers, self._settings = workers, settings
        self._bookmarks, self._listener = bookmarks, listener

    def evaluate(self, attempt: CellAttempt) -> None:
        """Evaluate a cell to the end, from its bookmark if it has one, or raise CellFailure."""
        bookmark = self._bookmarks / f"{hashlib.sha256(attempt.cell.id.encode()).hexdigest()[:16]}.json"
        tally = _read(bookmark, attempt.cell)
        resumed_at = tally.position
        workload = self._workers.workload(attempt.cell)
        self._listener(attempt.cell, "evaluating")
        while True:
            attempt.begin_part()  # the wall limit holds for a piece, not for all images
            evaluated = self._workers.ask(ROLE, attempt, Evaluate(workload, tally, PIECE_S, self._settings))
            if evaluated.findings:
                break
            tally = evaluated.tally
            self._listener(attempt.cell, "evaluating", tally.position / evaluated.images)
            with contextlib.suppress(StoreError):  # it only saves time after a crash
                write_own(bookmark, json.dumps({"cell": attempt.cell.id, "tally": dataclasses.asdict(tally)}))
        accuracy = {**evaluated.findings.details, **({"resumed_at": resumed_at} if resumed_at else {})}
        attempt.add(evaluated.findings.measurements, {"accuracy": accuracy})
        attempt.begin_part()
        with contextlib.suppress(OSError):
            bookmark.unlink(missing_ok=True)
            self._bookmarks.rmdir()  # if it was the last one


def _read(bookmark: Path, cell: Cell) -> Tally:
    """Read the tally of an unfinished evaluation of ``cell``; return an empty one without a readable bookmark."""
    try:
        body = json.loads(bookmark.read_text(encoding="utf-8"))
        return from_json(Tally, body["tally"]) if body["cell"] == cell.id else Tally()
    except (OSError, ValueError, KeyError, TypeError):
        return Tally()
