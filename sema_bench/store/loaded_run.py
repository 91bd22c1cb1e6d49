"""Runs as they are read to be compared, exported or shown: their records, and the machine they were measured on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import PACKAGES
from sema_bench.spec.record import Record


@dataclass(frozen=True)
class LoadedRun:
    """A run that is only read.

    Attributes:
        name: of its folder or file.
        records: the latest of each cell.
        hardware, software: what was measured on, and with.
        metadata: all of run.json.
        unreadable: lines of records.jsonl that are no records.
        path: its folder; None where it is a file.
    """

    name: str
    records: tuple[Record, ...]
    hardware: Mapping[str, Any]
    software: Mapping[str, Any]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unreadable: int = 0
    path: Path | None = None

    @functools.cached_property
    def yardstick(self) -> Cell | None:
        """The cell that was timed beside every group; None where the run does not tell."""
        try:
            plan = self.metadata["plan"]
            return Cell(**plan["yardstick"]) if "yardstick" in plan else _first_cell(Cell(**plan["groups"][0][0]))
        except (KeyError, IndexError, TypeError, ValueError):
            return None

    @functools.cached_property
    def planned(self) -> frozenset[Cell]:
        """The cells of its plan; none where the run does not tell."""
        return frozenset(planned_cells(self.metadata))

    @property
    def packages(self) -> Mapping[str, Any]:
        """Model → the packages its code came from; nothing where the run does not tell."""
        found = self.metadata.get(PACKAGES)
        return found if isinstance(found, Mapping) else {}

    @property
    def code(self) -> str | None:
        """Digest of the code that measured; None where the run does not tell."""
        environment = self.metadata.get("environment")
        context = environment.get("context") if isinstance(environment, Mapping) else None
        code = context.get("code") if isinstance(context, Mapping) else None
        return code if isinstance(code, str) else None


def _first_cell(first: Cell) -> Cell:
    """Return what runs of earlier releases took for a yardstick: their first cell, as a plain forward pass."""
    plain = {"mode": "eager", "step": "infer", "checkpointing": False, "sdpa": "auto", "batch_policy": "fixed"}
    return dataclasses.replace(first, batch=first.batch or 1, **plain)  # type: ignore[arg-type]


def planned_cells(metadata: Mapping[str, Any]) -> list[Cell]:
    """Return the cells of a run's plan, in its order; none where it does not tell."""
    try:
        return [Cell(**cell) for group in metadata["plan"]["groups"] for cell in group]
    except (KeyError, TypeError, ValueError):
        return []
