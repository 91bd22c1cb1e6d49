"""All runs of a results folder at once: what each holds, and how one cell fared in all of them.

What is read is table.csv where it is newer than the records it was made of: a hundred times faster than the records
with all of their samples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sema_bench.errors import StoreError, UsageError, unknown_name
from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.model_source import PACKAGES
from sema_bench.store.run_folder import RunFolder
from sema_bench.store.table import column_types, interval_columns, records_frame

_Key = tuple[object, ...]
#: What a table of cells has, whatever release wrote it.
_ALWAYS = ("model", "height", "width", "batch")


@dataclass(frozen=True)
class PastRun:
    """One run of the folder.

    Attributes:
        name: of its folder.
        created_at: UTC, ISO 8601; empty where it does not tell.
        suite: what was run.
        commit: of the code; empty where it did not lie in a git checkout.
        code: digest of the code.
        fingerprint: of the environment.
        machine: in words.
        table: its cells.
        packages: model → the packages its code came from.
        unreadable: lines of its records that are none, where the table had to be made of them.
    """

    name: str
    created_at: str
    suite: str
    commit: str
    code: str
    fingerprint: str
    machine: str
    table: pd.DataFrame = field(repr=False)
    packages: Mapping[str, Any] = field(default_factory=dict)
    unreadable: int = 0

    @property
    def ok(self) -> int:
        return int((self.table["status"] == "ok").sum())

    @property
    def failed(self) -> int:
        return len(self.table) - self.ok


@dataclass(frozen=True)
class Point:
    """One cell in one run; without a value where it failed, without bounds where the run has none."""

    run: PastRun
    status: str
    value: float | None
    low: float | None
    high: float | None


def read_history(root: Path, *, on_skip: Callable[[str], None], columns: Sequence[str] = ()) -> list[PastRun]:
    """Read every run below ``root``, oldest first; of their tables the identity, the status and ``columns``.

    Why a run cannot be read goes to ``on_skip``.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"no results folder {root}; give --out")
    wanted = [*IDENTITY_FIELDS, "status", *columns]
    runs = []
    for folder in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        try:
            if (folder / "run.json").exists():
                runs.append(_read(RunFolder(folder), wanted))
        except (StoreError, OSError) as problem:
            on_skip(str(problem))
    return sorted(runs, key=lambda run: (run.created_at, run.name))


def points_of(
    runs: Sequence[PastRun], metric: str, chosen: Mapping[str, object]
) -> dict[tuple[object, ...], list[Point]]:
    """Return identity of a cell → what became of it in each run that has it; for cells that came to a value at all.

    Args:
        runs: read with ``columns_of(metric)``.
        metric: which value.
        chosen: identity fields that cells must have.
    """
    low_name, high_name = _bounds(metric)
    found: dict[_Key, list[Point]] = {}
    for run in runs:
        table = run.table[(run.table["status"] != "ok") | run.table[metric].notna()]
        for name, value in chosen.items():
            table = table[table[name].astype("object") == value]
        for row in table.to_dict("records"):
            key = tuple(None if pd.isna(row[name]) else row[name] for name in IDENTITY_FIELDS)  # type: ignore[call-overload]
            status = str(row["status"])
            numbers = [row.get(name) if status == "ok" else None for name in (metric, low_name, high_name)]
            value, low, high = (None if n is None or pd.isna(n) else float(n) for n in numbers)  # type: ignore[call-overload]
            found.setdefault(key, []).append(Point(run, status, value, low, high))
    return {key: points for key, points in found.items() if any(point.value is not None for point in points)}


def columns_of(metric: str) -> list[str]:
    """Return the columns that the history of a metric needs.

    Raises:
        UsageError: there is no such metric.
    """
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return [metric, *(name for name in _bounds(metric) if name)]


def _bounds(metric: str) -> tuple[str, str]:
    spread = interval_columns(METRICS[metric])
    return spread.get("ci_low", ""), spread.get("ci_high", "")


def _read(run: RunFolder, wanted: Sequence[str]) -> PastRun:
    metadata = run.metadata()
    environment = _mapping(metadata.get("environment"))
    hardware, software = _mapping(environment.get("hardware")), _mapping(environment.get("software"))
    context = _mapping(environment.get("context"))
    gpus = hardware.get("gpus")
    gpu = _mapping(gpus[0]) if isinstance(gpus, list) and gpus else {}
    table, unreadable = _table(run, wanted)
    return PastRun(
        name=run.name,
        created_at=str(metadata.get("created_at") or ""),
        suite=str(_mapping(metadata.get("plan")).get("suite") or ""),
        commit=str(context.get("commit") or ""),
        code=str(context.get("code") or ""),
        fingerprint=str(environment.get("fingerprint") or ""),
        machine=_machine(gpu.get("name") or hardware.get("cpu"), software.get("torch")),
        table=table,
        packages=_mapping(metadata.get(PACKAGES)),
        unreadable=unreadable,
    )


def _machine(device: object, torch: object) -> str:
    return ", ".join(word for word, known in ((str(device), device), (f"torch {torch}", torch)) if known)


def _table(run: RunFolder, wanted: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Return the cells of a run, and how many lines of its records are none: table.csv is newer than such a line."""
    csv, sources = run.path / "table.csv", [path for path in (run.records_path, *run.shards) if path.exists()]
    if csv.is_file() and all(csv.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in sources):
        with contextlib.suppress(ValueError, TypeError, OverflowError, KeyError):  # what pandas raises for odd tables
            return _read_csv(csv, wanted), 0
    records, bad = run.read()
    frame: pd.DataFrame = records_frame(records)[list(wanted)]
    return frame, len(bad)


def _read_csv(csv: Path, wanted: Sequence[str]) -> pd.DataFrame:
    types = column_types()
    present = set(pd.read_csv(csv, nrows=0).columns)
    if not present.issuperset((*_ALWAYS, "status")):
        raise ValueError("not a table of cells")
    kept = {name: types[name] for name in wanted if name in present}
    read: pd.DataFrame = pd.read_csv(csv, dtype=kept, usecols=list(kept))  # type: ignore[arg-type]
    lacking = {name: pd.array([None] * len(read), dtype=types[name]) for name in wanted if name not in present}  # type: ignore[call-overload]
    filled: pd.DataFrame = read.assign(**lacking)
    return filled


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


#: Of ``run_rows``.
RUN_COLUMNS = ("run", "created_at", "suite", "cells_ok", "cells_failed", "commit", "code", "environment", "machine")


def run_rows(runs: Sequence[PastRun]) -> Iterator[dict[str, object]]:
    """Yield a row for each run."""
    for run in runs:
        yield {
            "run": run.name,
            "created_at": run.created_at,
            "suite": run.suite,
            "cells_ok": run.ok,
            "cells_failed": run.failed,
            "commit": run.commit,
            "code": run.code,
            "environment": run.fingerprint,
            "machine": run.machine,
        }
