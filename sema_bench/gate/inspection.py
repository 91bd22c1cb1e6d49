"""What needs no statistics: parameters and MACs must be what they were, and memory at most two per cent more."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.gate.arms import Arm
from sema_bench.gate.sampling import request_of
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling

#: Metric → how much more of it the head may have, as a share of the base's; less is never a fault but in exact counts.
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
    """What was counted of one cell.

    Attributes:
        counts: of both arms.
        failures: (arm, probe, why) of what could not be counted.
    """

    counts: tuple[Count, ...] = ()
    failures: tuple[tuple[str, str, str], ...] = ()

    @property
    def lost(self) -> list[str]:
        """What only the base can still be counted by."""
        on_base = {probe for arm, probe, _ in self.failures if arm == "base"}
        return [f"{probe}: {why}" for arm, probe, why in self.failures if arm == "head" and probe not in on_base]


def inspect_arms(arms: Sequence[Arm], cells: Iterable[Cell], *, sampling: Sampling) -> dict[Cell, Inspection]:
    """Count every cell in both arms, in processes that time nothing."""
    cells = list(cells)
    sides = {arm.name: _inspect(arm, cells, sampling) for arm in arms}
    return {cell: _compared(sides["base"][cell], sides["head"][cell]) for cell in cells}


class _Side:
    """What was counted of one cell in one arm, and why not."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.failed: dict[str, str] = {}


def _inspect(arm: Arm, cells: Sequence[Cell], sampling: Sampling) -> dict[Cell, _Side]:
    found = {cell: _Side() for cell in cells}
    worker: WorkerProcess | None = None
    try:
        for cell, probe in itertools.product(cells, _PROBES):
            for _ in range(_TRIES):
                worker = worker or arm.start(cell)
                try:
                    found[cell].values |= _counted(worker, cell, probe, sampling)
                except CellFailure as failure:
                    found[cell].failed[probe] = f"{failure.status}: {failure}"
                    worker.kill()
                    worker = None
                    if failure.details.get("unknown"):
                        break
                else:
                    found[cell].failed.pop(probe, None)
                    break
    finally:
        if worker:
            worker.kill()
    return found


def _counted(worker: WorkerProcess, cell: Cell, probe: str, sampling: Sampling) -> dict[str, float]:
    worker.wait_until_ready()
    limit = sampling.wall_limit_s(cell.mode)
    request = {"cell": request_of(cell), "seed": sampling.seed, "probes": [probe]}
    answer = worker.ask("inspect", timeout_s=limit, **request)
    worker.ask("release", timeout_s=limit)
    values = {measurement["metric"]: float(measurement["value"]) for measurement in answer["measurements"]}
    return {name: values[name] for name in LIMITS if name in values}


def _compared(base: _Side, head: _Side) -> Inspection:
    names = [name for name in LIMITS if name in base.values and name in head.values]
    failures = [("base", probe, why) for probe, why in base.failed.items()]
    failures += [("head", probe, why) for probe, why in head.failed.items()]
    return Inspection(tuple(Count(name, base.values[name], head.values[name]) for name in names), tuple(failures))
