"""Hold a run in memory: its records, and the machine that they were measured on."""

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
from sema_bench.text.plain_json import mapping


@dataclass(frozen=True)
class StoredRun:
    """A run to read, not to write.

    Attributes:
        name: of its folder or file.
        records: the latest of each cell.
        hardware, software: of the environment.
        metadata: all of run.json.
        unreadable: lines of records.jsonl that are not records.
        path: its folder; None for a file.
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
        """The cell that was timed beside every group; None if the metadata lacks it."""
        try:
            plan = self.metadata["plan"]
            if "yardstick" in plan:
                return Cell(**plan["yardstick"])
            first = Cell(**plan["groups"][0][0])  # earlier releases timed the first cell, as a plain forward pass
            same = {name: getattr(first, name) for name in ("model", "height", "width", "data", "weights")}
            return Cell(**same, **first.surroundings, batch=first.batch or 1)
        except (KeyError, IndexError, TypeError, ValueError):
            return None

    @functools.cached_property
    def planned(self) -> frozenset[Cell]:
        """The cells of its plan; empty without one."""
        return frozenset(planned_cells(self.metadata))

    @property
    def missing(self) -> int:
        """Number of planned cells without a record."""
        return len({cell.id for cell in self.planned} - {record.cell.id for record in self.records})

    @property
    def packages(self) -> Mapping[str, Any]:
        """Model → the packages that its code came from."""
        return mapping(self.metadata.get(PACKAGES))

    @property
    def machine(self) -> dict[str, Any]:
        """The machine, the code and the yardstick, as a file of pytest-benchmark describes them."""
        plan = {} if self.yardstick is None else {"yardstick": dataclasses.asdict(self.yardstick)}
        return {"hardware": dict(self.hardware), "software": dict(self.software), "code": self.code, "plan": plan}

    @property
    def code(self) -> str | None:
        """Digest of the code that measured; None if the metadata lacks it."""
        code = mapping(mapping(self.metadata.get("environment")).get("context")).get("code")
        return code if isinstance(code, str) else None


def planned_cells(metadata: Mapping[str, Any]) -> list[Cell]:
    """Read the cells of a run's plan, in its order; none without a plan."""
    try:
        return [Cell(**cell) for group in metadata["plan"]["groups"] for cell in group]
    except (KeyError, TypeError, ValueError):
        return []
