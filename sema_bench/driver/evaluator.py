"""Take the accuracy of cells piece by piece, in one worker, with a bookmark from which to resume."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.inspector import Inspector
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import StoreError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.store.files import write_own
from sema_bench.worker.protocol import Evaluate, Tally, from_json

ROLE = "evaluator"
#: How long a worker evaluates before it reports its progress.
PIECE_S = 5.0


class Evaluator:
    """Takes the accuracy of cells.

    Args:
        workers: the processes that evaluate.
        settings: batch and processes that prepare images.
        bookmarks: folder for the tallies of unfinished evaluations.
        listener: hears how far each cell is.
    """

    def __init__(self, workers: WorkerPool, settings: EvaluationSettings, bookmarks: Path, listener: Listener) -> None:
        self._workers = workers
        self._settings = settings
        self._bookmarks = bookmarks
        self._listener = listener

    def records(self, group: Sequence[Cell], skipped: Mapping[Cell, str], inspector: Inspector) -> Iterator[Record]:
        """Yield the record of each cell of a group that is not timed; one worker does all."""
        for cell in group:
            attempt = CellAttempt(cell, skipped=skipped.get(cell, ""))
            try:
                inspector.at_its_batch(attempt, ROLE)
                if not attempt.skipped:
                    self.evaluate(attempt)
            except CellFailure as failure:
                yield attempt.record(failure)
            else:
                yield attempt.record()

    def evaluate(self, attempt: CellAttempt) -> None:
        """Evaluate a cell to the end, from its bookmark if it has one.

        Raises:
            CellFailure: the cell ends here.
        """
        bookmark = self._bookmarks / f"{hashlib.sha256(attempt.cell.id.encode()).hexdigest()[:16]}.json"
        tally = _read(bookmark, attempt.cell)
        resumed_at = tally.position if tally else 0
        workload = self._workers.workload(attempt.cell)
        self._listener(attempt.cell, "evaluating")
        while True:
            attempt.begin_part()  # the wall limit holds for a piece, not for all images
            found = self._workers.ask(ROLE, attempt, Evaluate(workload, tally, PIECE_S, self._settings))
            if found.done:
                break
            tally = found.tally
            self._listener(attempt.cell, f"evaluating, {tally.position / found.images:.0%}")
            with contextlib.suppress(StoreError):  # it saves time after a crash, and nothing else
                write_own(bookmark, json.dumps({"cell": attempt.cell.id, "tally": dataclasses.asdict(tally)}))
        accuracy = {**found.details, **({"resumed_at": resumed_at} if resumed_at else {})}
        attempt.add(found.measurements, {"accuracy": accuracy})
        attempt.begin_part()
        with contextlib.suppress(OSError):
            bookmark.unlink(missing_ok=True)
            self._bookmarks.rmdir()  # where it was the last one


def _read(bookmark: Path, cell: Cell) -> Tally | None:
    """Return the tally of an unfinished evaluation of ``cell``; None if there is no bookmark, or an unreadable one."""
    try:
        body = json.loads(bookmark.read_text(encoding="utf-8"))
        tally: Tally = from_json(Tally, body["tally"])
        return tally if body["cell"] == cell.id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
