"""Accuracy of cells, in one worker after the other's place: piece by piece, with a bookmark from which to go on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.inspector import Inspector
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import StoreError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import EvaluationSettings
from sema_bench.store.files import write_own

ROLE = "evaluator"
#: How long a worker evaluates before it tells how far it is.
PIECE_S = 5.0


class Evaluator:
    """Takes the accuracy of drafts.

    Args:
        workers: where.
        settings: batch and processes that prepare images.
        bookmarks: folder for what is known of unfinished evaluations.
        listener: told how far each cell is.
    """

    def __init__(self, workers: WorkerPool, settings: EvaluationSettings, bookmarks: Path, listener: Listener) -> None:
        self._workers = workers
        self._settings = settings
        self._bookmarks = bookmarks
        self._listener = listener

    def records(self, group: Sequence[Cell], skipped: Mapping[Cell, str], inspector: Inspector) -> Iterator[Record]:
        """Yield the record of each cell of a group of which nothing is timed; all in one worker."""
        for cell in group:
            attempt = CellAttempt(cell)
            try:
                inspector.at_its_batch(attempt, ROLE)
                if cell not in skipped:
                    self.evaluate(attempt)
            except CellFailure as failure:
                yield attempt.record("skipped", skipped[cell]) if cell in skipped else attempt.failed(failure)
            else:
                yield attempt.record("skipped", skipped[cell]) if cell in skipped else attempt.record()

    def evaluate(self, attempt: CellAttempt) -> None:
        """Evaluate a cell to the end, from its bookmark on if it has one.

        Raises:
            CellFailure: the cell ends here.
        """
        bookmark = self._bookmarks / f"{hashlib.sha256(attempt.cell.id.encode()).hexdigest()[:16]}.json"
        tally = _read(bookmark, attempt.cell)
        resumed_at = int(tally.get("position", 0)) if tally else 0
        self._listener(attempt.cell, "evaluating")
        while True:
            attempt.counted_from_s = attempt.spent_s  # the wall limit holds for a piece, not for all images
            answer = self._workers.ask(
                ROLE,
                attempt,
                "evaluate",
                **self._workers.request(attempt.cell),
                tally=tally,
                seconds=PIECE_S,
                settings=dataclasses.asdict(self._settings),
            )
            if answer["done"]:
                break
            tally = answer["tally"]
            self._listener(attempt.cell, f"evaluating, {tally['position'] / answer['images']:.0%}")
            with contextlib.suppress(StoreError):  # it saves time after a crash, and nothing else
                write_own(bookmark, json.dumps({"cell": attempt.cell.id, "tally": tally}))
        measurements = [Measurement(**m) for m in answer["measurements"]]
        attempt.measurements |= {m.metric: m for m in measurements}
        attempt.details["accuracy"] = answer["details"] | ({"resumed_at": resumed_at} if resumed_at else {})
        attempt.counted_from_s = attempt.spent_s
        with contextlib.suppress(OSError):
            bookmark.unlink(missing_ok=True)
            self._bookmarks.rmdir()  # where it was the last one


def _read(bookmark: Path, cell: Cell) -> dict[str, Any] | None:
    """Return the tally of an unfinished evaluation of ``cell``; a bookmark that cannot be read is none."""
    try:
        body = json.loads(bookmark.read_text(encoding="utf-8"))
        return dict(body["tally"]) if body["cell"] == cell.id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
