"""What needs no statistics: parameters and MACs must be what they were, and memory at most two per cent more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sema_bench.gate.arms import Arm
from sema_bench.gate.sampling import request_of
from sema_bench.plan import Sampling
from sema_bench.schema import Cell
from sema_bench.worker_process import CellFailure, WorkerProcess

#: Metric → how much more of it the head may have, as a share of the base's; less is never a fault but in exact counts.
LIMITS = {"params": 0.0, "macs": 0.0, "peak_memory_bytes": 0.02}
_EXACT = ("params", "macs")


@dataclass(frozen=True)
class Count:
    """One number of both arms."""

    metric: str
    base: float
    head: float

    @property
    def is_accepted(self) -> bool:
        if self.metric in _EXACT:
            return self.base == self.head
        return self.head <= self.base * (1 + LIMITS[self.metric])


@dataclass(frozen=True)
class Inspection:
    """What was counted of one cell.

    Attributes:
        counts: of both arms.
        failures: arm → why it could not be counted.
    """

    counts: tuple[Count, ...] = ()
    failures: tuple[tuple[str, str], ...] = ()


def inspect_arms(arms: Sequence[Arm], cells: Iterable[Cell], *, sampling: Sampling) -> dict[Cell, Inspection]:
    """Count every cell in both arms, in processes that time nothing."""
    found: dict[str, dict[Cell, Mapping[str, float] | str]] = {arm.name: {} for arm in arms}
    cells = list(cells)
    for arm in arms:
        worker: WorkerProcess | None = None
        for cell in cells:
            worker = worker or arm.start(cell)
            try:
                found[arm.name][cell] = _counted(worker, cell, sampling)
            except CellFailure as failure:
                found[arm.name][cell] = f"{failure.status}: {failure}"
                worker.kill()
                worker = None
        if worker:
            worker.kill()
    return {cell: _compared({arm.name: found[arm.name][cell] for arm in arms}) for cell in cells}


def _counted(worker: WorkerProcess, cell: Cell, sampling: Sampling) -> dict[str, float]:
    worker.wait_until_ready()
    answer = worker.ask(
        "inspect",
        timeout_s=sampling.wall_limit_s(cell.mode),
        cell=request_of(cell),
        seed=sampling.seed,
        probes=["params", "macs", "memory"],
    )
    values = {measurement["metric"]: float(measurement["value"]) for measurement in answer["measurements"]}
    worker.ask("release", timeout_s=sampling.wall_limit_s(cell.mode))
    return {name: values[name] for name in LIMITS if name in values}


def _compared(sides: Mapping[str, Mapping[str, float] | str]) -> Inspection:
    failures = tuple((arm, told) for arm, told in sides.items() if isinstance(told, str))
    base, head = sides["base"], sides["head"]
    if isinstance(base, str) or isinstance(head, str):
        return Inspection(failures=failures)
    return Inspection(tuple(Count(name, base[name], head[name]) for name in LIMITS if name in base and name in head))
