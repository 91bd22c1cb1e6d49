"""Count both arms: parameters and MACs must not change, and memory may grow by two per cent at most."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.gate.arms import Arm
from sema_bench.gate.sampling import workload_of
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.protocol import Inspect, Release

#: Metric → how much more of it the head may have, as a share of the base's; less is a fault in exact counts alone.
LIMITS = {"params": 0.0, "macs": 0.0, "peak_memory_bytes": 0.02}
EXACT = ("params", "macs")
_PROBES = ("params", "macs", "memory")
#: A machine fails now and then; a model that does fails twice.
_TRIES = 2


@dataclass(frozen=True)
class Count:
    """One number of both arms."""

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
        """The probes that count the base and fail on the head, with the reason."""
        on_base = {probe for arm, probe, _ in self.failures if arm == "base"}
        return [f"{probe}: {why}" for arm, probe, why in self.failures if arm == "head" and probe not in on_base]


@dataclass
class _Side:
    """The counts of one cell in one arm, and probe → reason of each failure."""

    values: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def inspect_arms(arms: Sequence[Arm], cells: Sequence[Cell], *, sampling: Sampling) -> dict[Cell, Inspection]:
    """Count every cell in both arms, in processes that time nothing."""
    base, head = (_inspect(arm, cells, sampling) for arm in arms)
    return {cell: _compared(base[cell], head[cell]) for cell in cells}


def counts_of(
    base: Callable[[str], float | None], head: Callable[[str], float | None], metrics: Iterable[str]
) -> tuple[Count, ...]:
    """Pair what both arms have of ``metrics``; ``base`` and ``head`` return the value of one."""
    pairs = ((metric, base(metric), head(metric)) for metric in metrics)
    return tuple(Count(metric, one, other) for metric, one, other in pairs if one is not None and other is not None)


def _inspect(arm: Arm, cells: Sequence[Cell], sampling: Sampling) -> dict[Cell, _Side]:
    sides = {cell: _Side() for cell in cells}
    worker: WorkerProcess | None = None
    try:
        for cell, probe in itertools.product(cells, _PROBES):
            for _ in range(_TRIES):
                worker = worker or arm.start(cell)
                try:
                    sides[cell].values |= _counted(worker, cell, probe, sampling)
                except CellFailure as failure:
                    sides[cell].failed[probe] = f"{failure.status}: {failure}"
                    worker.kill()
                    worker = None
                    if failure.details.get("unknown"):
                        break
                else:
                    sides[cell].failed.pop(probe, None)
                    break
    finally:
        if worker:
            worker.kill()
    return sides


def _counted(worker: WorkerProcess, cell: Cell, probe: str, sampling: Sampling) -> dict[str, float]:
    worker.wait_until_ready()
    limit = sampling.wall_limit_s(cell.mode)
    inspected = worker.ask(Inspect(workload_of(cell, sampling), (probe,)), timeout_s=limit)
    worker.ask(Release(), timeout_s=limit)
    return {m.metric: float(m.value) for m in inspected.measurements if m.metric in LIMITS}


def _compared(base: _Side, head: _Side) -> Inspection:
    return Inspection(
        counts_of(base.values.get, head.values.get, LIMITS),
        tuple((arm, *failed) for arm, side in (("base", base), ("head", head)) for failed in side.failed.items()),
    )
