"""Predict which lane runs each group, and when, from the times of earlier runs."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.plan import work
from sema_bench.store.history import read_history

Group = tuple[Cell, ...]


@dataclass(frozen=True)
class Expectation:
    """Times that cells are expected to take.

    Attributes:
        seconds: cell id → seconds, for the cells that earlier runs on the same machines have measured.
        scale: seconds per unit of ``work`` for the others; None without such runs.
    """

    seconds: Mapping[str, float]
    scale: float | None

    def of(self, cell: Cell) -> float:
        """Return seconds, or units of work if nothing is known."""
        return self.seconds.get(cell.id, work(cell) * (self.scale or 1.0))


@dataclass(frozen=True)
class Placed:
    """A group on a lane; it begins and ends this many seconds after the start of the run."""

    group: Group
    lane: str
    begins_s: float
    ends_s: float


def expectation(cells: Sequence[Cell], root: Path, fingerprint: str, *, on_skip: Callable[[str], None]) -> Expectation:
    """Read how long ``cells`` took in the runs of ``root``, on machines with this fingerprint."""
    durations: dict[str, list[float]] = {}
    wanted = {cell.id: cell for cell in cells}
    identities = {tuple(getattr(cell, name) for name in IDENTITY_FIELDS): cell.id for cell in cells}
    if root.is_dir():
        for run in read_history(root, on_skip=on_skip, columns=["duration_s"]):
            if run.fingerprint != fingerprint:
                continue
            table = run.table[run.table["status"] == "ok"]
            for *identity, seconds in table[[*IDENTITY_FIELDS, "duration_s"]].itertuples(index=False):
                key = identities.get(tuple("" if value is pd.NA else value for value in identity))
                if key and seconds is not pd.NA:
                    durations.setdefault(key, []).append(float(seconds))
    known = {key: statistics.median(values) for key, values in durations.items()}
    rates = [seconds / work(wanted[key]) for key, seconds in known.items()]
    return Expectation(known, statistics.median(rates) if rates else None)


def place(groups: Sequence[Group], lanes: Sequence[str], expected: Expectation) -> list[Placed]:
    """Give each group, in order, to the lane that is free first."""
    free = [(0.0, index, lane) for index, lane in enumerate(lanes)]
    placed = []
    for group in groups:
        begins, index, lane = heapq.heappop(free)
        ends = begins + sum(expected.of(cell) for cell in group)
        placed.append(Placed(group, lane, begins, ends))
        heapq.heappush(free, (ends, index, lane))
    return placed
