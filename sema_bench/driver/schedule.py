"""Plan to records: goes through the groups, skips what cannot succeed, and keeps every record at once.

The runner owns the order, the skip rules and the store; how a cell is measured is the executor's.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from sema_bench.driver.executor import Executor
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_code import MODEL_FILES
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.run_folder import RunFolder
from sema_bench.worker.probes.throughput import FEWEST_SAMPLES


class Progress(Protocol):
    """What the runner reports to while it works."""

    def start(self, *, total: int, missing: Sequence[Cell]) -> None:
        """Open: ``total`` cells, of which ``missing`` are to be measured now."""

    def finished(self, record: Record) -> None:
        """One more cell has its record."""


class SkipRules:
    """Tells which cells are not worth starting, from what smaller sizes of the same variant did.

    A larger size is skipped when a smaller one ran out of memory or time, or when the latency expected from
    the smaller ones leaves no room for one warm-up and three samples.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._history: dict[tuple[object, ...], list[Record]] = {}

    def observe(self, record: Record) -> None:
        """Take note of a finished cell."""
        self._history.setdefault(record.cell.variant, []).append(record)

    def reason(self, cell: Cell) -> str | None:
        """Return why ``cell`` should be skipped, or None."""
        if cell.batch_policy == "max":  # a larger size gets a smaller batch: what another did tells nothing
            return None
        smaller = [r for r in self._history.get(cell.variant, []) if _fits_inside(r.cell, cell)]
        for record in smaller:
            if record.status == "oom":
                return f"ran out of memory at {record.cell.resolution.label}"
            if record.status == "timeout":
                return f"timed out at {record.cell.resolution.label}"
        expected = _expected_latency(smaller, cell)
        limit = self._sampling.wall_limit_s(cell.mode)
        if expected is not None and (1 + FEWEST_SAMPLES) * expected > limit:
            return (
                f"time limit: about {expected:.0f} s per forward pass expected, and "
                f"{1 + FEWEST_SAMPLES} of them do not fit into {limit:.0f} s (raise --time-limit)"
            )
        return None


def run_plan(
    plan: Plan,
    run: RunFolder,
    executor: Executor,
    *,
    environment: str,
    progress: Progress,
    after_group: Callable[[Callable[[], list[Record]]], None] = lambda records: None,
    unfit: Callable[[Sequence[Cell]], Mapping[Cell, str]] = lambda cells: {},
    skip: bool = True,
    retry_failed: bool = False,
) -> list[Record]:
    """Measure what ``run`` still lacks of ``plan``; return the latest record of every cell, in plan order.

    Args:
        plan: the cells.
        run: where records go; its lock must be held.
        executor: where cells run.
        environment: fingerprint to put into the records that do not say themselves where they were taken.
        progress: told of every record.
        after_group: called after each group (tables, plots) with what returns all records so far.
        unfit: told the cells to measure; returns those that no worker has the memory for, with the reason.
        skip: whether cells that are expected to fail are skipped.
        retry_failed: whether cells that have a record other than ``ok`` are measured again.

    Raises:
        StoreError: a record could not be kept; all earlier ones are.
    """
    done = {record.cell.id: record for record in run.records()}
    if retry_failed:
        done = {key: record for key, record in done.items() if record.status == "ok"}
    if not skip:
        done = {key: record for key, record in done.items() if record.status != "skipped"}
    rules = SkipRules(plan.sampling)
    for record in done.values():
        rules.observe(record)
    progress.start(total=len(plan.cells), missing=[cell for cell in plan.cells if cell.id not in done])

    model_files: dict[str, str] = {}

    def keep(record: Record) -> None:
        files: Mapping[str, str] = record.details.get(MODEL_FILES, {})
        for path, digest in files.items():
            if model_files.setdefault(path, digest) != digest:
                reason = f"{path}, which the model imports or reads, has changed during this run"
                record = dataclasses.replace(record, status="error", reason=reason, measurements={})
        stamped = dataclasses.replace(record, environment=record.environment or environment)
        run.append(stamped)
        rules.observe(stamped)
        done[stamped.cell.id] = stamped
        progress.finished(stamped)

    # On meta nothing is timed, so no cell has to wait for those of its own size.
    groups = (plan.cells,) if plan.cells[0].device == "meta" else plan.groups
    waiting = deque(missing for group in groups if (missing := [cell for cell in group if cell.id not in done]))
    without_room = unfit([cell for group in waiting for cell in group]) if skip else {}
    under_way: list[set[str]] = []

    def submit() -> None:
        while waiting and len(under_way) < executor.width:
            group = waiting.popleft()
            reasons = {cell: without_room.get(cell) or rules.reason(cell) if skip else None for cell in group}
            under_way.append({cell.id for cell in group})
            executor.submit(group, {cell: reason for cell, reason in reasons.items() if reason})

    submit()
    for record in executor.records():
        keep(record)
        for group in under_way:
            group.discard(record.cell.id)
        if not all(under_way):
            under_way[:] = [group for group in under_way if group]
            after_group(lambda: _in_plan_order(plan, done.values()))
            submit()
    return _in_plan_order(plan, done.values())


def _in_plan_order(plan: Plan, records: Iterable[Record]) -> list[Record]:
    position = {cell.id: index for index, cell in enumerate(plan.cells)}
    known = [record for record in records if record.cell.id in position]
    return sorted(known, key=lambda record: position[record.cell.id])


def _fits_inside(small: Cell, large: Cell) -> bool:
    return small.height <= large.height and small.width <= large.width and small.resolution != large.resolution


def _expected_latency(smaller: list[Record], cell: Cell) -> float | None:
    """Extrapolate latency in pixels from the two largest smaller sizes, at least linearly; None without one."""
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
