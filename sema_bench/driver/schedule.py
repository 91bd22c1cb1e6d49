"""Schedule the cells of a run: order them, skip those that are not worth starting, and keep each record."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from sema_bench.driver.executor import Executor, Group
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_code import MODEL_FILES
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import MORE_TIME, Sampling
from sema_bench.store.run_folder import RunFolder
from sema_bench.worker.probes.throughput import FEWEST_SAMPLES


class Progress(Protocol):
    """Shows how far the cells are."""

    def start(self, *, total: int, missing: Sequence[Sequence[Cell]]) -> None:
        """Start with ``total`` cells; the groups ``missing`` are to be measured now."""

    def finished(self, record: Record) -> None:
        """Show the record of a cell."""


class Schedule:
    """Hands the groups of a plan to an executor, in order; stores each record at once in ``run``, which is locked.

    Args:
        environment: fingerprint for the records that have none.
        skip: skip cells that are expected to fail.
        retry_failed: measure cells with a record other than ``ok`` again.
    """

    def __init__(
        self, plan: Plan, run: RunFolder, *, environment: str, skip: bool = True, retry_failed: bool = False
    ) -> None:
        self._plan, self._run, self._environment, self._skip = plan, run, environment, skip
        self.kept_at = 0.0  #: ``time.monotonic`` of the last record that ``run`` has kept; 0 before the first
        self._done: dict[str, Record] = {}
        self._by_variant: defaultdict[tuple[object, ...], list[Record]] = defaultdict(list)
        self._model_files: dict[str, str] = {}
        for record in run.records():
            if (skip or record.status != "skipped") and (not retry_failed or record.status == "ok"):
                self._note(record)

    @property
    def records(self) -> list[Record]:
        """The latest record of each cell of the plan that has one, in its order."""
        return [self._done[key] for key in dict.fromkeys(cell.id for cell in self._plan.cells) if key in self._done]

    @property
    def missing(self) -> list[tuple[Cell, ...]]:
        """The groups of the plan without the cells that have a record."""
        # On meta nothing is timed, so no cell has to wait for others of the same size.
        groups = (self._plan.cells,) if self._plan.cells[0].device == "meta" else self._plan.groups
        left = (tuple(cell for cell in group if cell.id not in self._done) for group in groups)
        return [group for group in left if group]

    def run(
        self,
        executor: Executor,
        progress: Progress,
        *,
        unfit: Callable[[Sequence[Cell]], Mapping[Cell, str]] = lambda cells: {},
        between_groups: Callable[[], None] = lambda: None,
    ) -> list[Record]:
        """Measure the cells that lack a record; return the latest record of every cell, in plan order.

        Args:
            unfit: gets the cells to measure; maps those that need more memory than a worker has to the reason.
            between_groups: called when the executor has finished a group, except the last (tables, plots).
        """
        missing = self.missing
        progress.start(total=len(self._plan.cells), missing=missing)
        too_large = unfit([cell for group in missing for cell in group]) if self._skip else {}

        def reason(cell: Cell) -> str | None:
            return too_large.get(cell) or skip_reason(cell, self._by_variant[cell.variant], self._plan.sampling)

        def groups() -> Iterator[Group]:
            for group in missing:
                if group is not missing[0]:
                    between_groups()
                yield group, {cell: why for cell in group if self._skip and (why := reason(cell))}

        for record in executor.run(groups()):
            progress.finished(self._keep(record))
        return self.records

    def _keep(self, record: Record) -> Record:
        """Store a record and return it; make it an ``error`` if a file of its model has changed during the run."""
        files: Mapping[str, str] = record.details.get(MODEL_FILES, {})
        for path, digest in files.items():
            if self._model_files.setdefault(path, digest) != digest:
                reason = f"{path}, which the model imports or reads, has changed during this run"
                record = dataclasses.replace(record, status="error", reason=reason, measurements={})
        record = dataclasses.replace(record, environment=record.environment or self._environment)
        self._run.append(record)
        self.kept_at = time.monotonic()
        self._note(record)
        return record

    def _note(self, record: Record) -> None:
        self._done[record.cell.id] = record
        self._by_variant[record.cell.variant].append(record)


def skip_reason(cell: Cell, earlier: Sequence[Record], sampling: Sampling) -> str | None:
    """Return why ``cell`` is not worth starting, or None; ``earlier`` are records of its variant.

    A larger size is skipped if a smaller one ran out of memory or time, or if the latency expected from the smaller
    ones leaves no room for one warm-up and three samples.
    """
    if cell.batch_policy == "max":  # a larger size gets a smaller batch, so smaller sizes say nothing about it
        return None
    smaller = [record for record in earlier if _fits_inside(record.cell, cell)]
    for record in smaller:
        if record.status == "oom":
            return f"ran out of memory at {record.cell.resolution.label}"
        if record.status == "timeout":
            return f"timed out at {record.cell.resolution.label}"
    expected = _expected_latency(smaller, cell)
    limit = sampling.wall_limit_s(cell.mode)
    if expected is not None and (1 + FEWEST_SAMPLES) * expected > limit:
        return (
            f"time limit: about {expected:.0f} s per forward pass expected, and "
            f"{1 + FEWEST_SAMPLES} of them do not fit into {limit:.0f} s; {MORE_TIME}"
        )
    return None


def _fits_inside(small: Cell, large: Cell) -> bool:
    return small.height <= large.height and small.width <= large.width and small.resolution != large.resolution


def _expected_latency(smaller: Sequence[Record], cell: Cell) -> float | None:
    """Extrapolate latency over pixels from the two largest smaller sizes, at least linearly; None without any."""
    points = sorted(
        (r.cell.resolution.pixels, latency) for r in smaller if (latency := r.value("latency_s")) is not None
    )
    if not points:
        return None
    pixels, latency = points[-1]
    exponent = 1.0
    if len(points) > 1 and points[-2][0] < pixels:
        exponent = math.log(latency / points[-2][1]) / math.log(pixels / points[-2][0])
    return float(latency * (cell.resolution.pixels / pixels) ** min(max(exponent, 1.0), 2.0))
