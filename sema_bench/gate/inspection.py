"""Count both arms: parameters and MACs must not change, and memory may grow by two per cent at most."""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.gate.arms import Arm
from sema_bench.gate.sampling import workload_of
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.protocol import Inspect, Release

#: Metric → how much more of it the head may have, as a share of the base's; less is a fault only in exact counts.
LIMITS = {"params": 0.0, "macs": 0.0, "peak_memory_bytes": 0.02}
EXACT = ("params", "macs")
_PROBES = ("params", "macs", "memory")
#: A machine fails now and then; a faulty model fails twice.
_TRIES = 2


@dataclass(frozen=True)
class Count:
    """One metric of both arms."""

    metric: str
    base: float
    head: float

    @property
    def is_accepted(self) -> bool:
        if self.metric in EXACT:
            return self.base == self.head
        return self.head <= self.base * (1 + LIMITS[self.metric])


@dataclass(frozen=True)
class Inspection:
    """The counts of one cell in both arms, and (arm, probe, reason) of each probe that failed."""

    counts: tuple[Count, ...] = ()
    failures: tuple[tuple[str, str, str], ...] = ()

    @property
    def lost(self) -> list[str]:
        """The probes that succeed on the base and fail on the head, with the reason."""
        on_base = {probe for arm, probe, _ in self.failures if arm == "base"}
        return [f"{probe}: {why}" for arm, probe, why in self.failures if arm == "head" and probe not in on_base]


def inspect_arms(arms: Sequence[Arm], cells: Sequence[Cell], *, sampling: Sampling) -> dict[Cell, Inspection]:
    """Count every cell in both arms at once, in processes that time nothing."""
    values: dict[tuple[str, Cell], dict[str, float]] = defaultdict(dict)
    failures: dict[Cell, list[tuple[str, str, str]]] = defaultdict(list)
    stop = threading.Event()
    with ThreadPoolExecutor(len(arms)) as pool:
        try:
            every = list(pool.map(lambda arm: list(_counts(arm, cells, sampling, stop)), arms))
        finally:  # Ctrl-C waits for the probe that runs
            stop.set()
    for arm, counts in zip(arms, every, strict=True):
        for cell, probe, counted in counts:
            if isinstance(counted, CellFailure):
                failures[cell].append((arm.name, probe, f"{counted.status}: {counted}"))
            else:
                values[arm.name, cell] |= counted
    base, head = (arm.name for arm in arms)
    return {
        cell: Inspection(counts_of(values[base, cell].get, values[head, cell].get, LIMITS), tuple(failures[cell]))
        for cell in cells
    }


def counts_of(
    base: Callable[[str], float | None], head: Callable[[str], float | None], metrics: Iterable[str]
) -> tuple[Count, ...]:
    """Pair the values of the ``metrics`` that both arms have; ``base`` and ``head`` look a metric up."""
    pairs = ((metric, base(metric), head(metric)) for metric in metrics)
    return tuple(Count(metric, one, other) for metric, one, other in pairs if one is not None and other is not None)


def _counts(
    arm: Arm, cells: Sequence[Cell], sampling: Sampling, stop: threading.Event
) -> Iterator[tuple[Cell, str, dict[str, float] | CellFailure]]:
    """Yield what each probe counts of each cell, or why it fails."""
    worker: WorkerProcess | None = None
    try:
        for cell, probe in itertools.product(cells, _PROBES):
            if stop.is_set():
                return
            limit = sampling.wall_limit_s(cell.mode)
            for left in reversed(range(_TRIES)):
                worker = worker or arm.start(cell)
                try:
                    inspected = worker.ask(Inspect(workload_of(cell, sampling), (probe,)), timeout_s=limit)
                    worker.ask(Release(), timeout_s=limit)
                except CellFailure as failure:
                    worker.kill()
                    worker = None
                    if failure.details.get("unknown") or not left:
                        yield cell, probe, failure
                        break
                else:
                    yield cell, probe, {m.metric: float(m.value) for m in inspected.measurements if m.metric in LIMITS}
                    break
    finally:
        if worker:
            worker.kill()
