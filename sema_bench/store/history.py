"""Read all runs of a results folder: the contents of each, and the values of one cell across all of them."""

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
from sema_bench.store.table import column_types, interval_columns, pandas_column, records_frame
from sema_bench.text.plain_json import mapping

_Key = tuple[object, ...]


@dataclass(frozen=True)
class PastRun:
    """One run of the folder; a text is empty if run.json lacks it."""

    name: str
    created_at: str  # UTC, ISO 8601
    suite: str
    commit: str
    code: str  # digest
    fingerprint: str  # of the environment
    machine: str  # in words
    table: pd.DataFrame = field(repr=False)
    packages: Mapping[str, Any] = field(default_factory=dict)  # model → the packages that its code came from
    unreadable: int = 0  # lines of records.jsonl that are not records; 0 if table.csv was read

    @property
    def ok(self) -> int:
        return int((self.table["status"] == "ok").sum())

    @property
    def failed(self) -> int:
        return len(self.table) - self.ok


@dataclass(frozen=True)
class Point:
    """One cell in one run; a failed cell has no value, and some runs have no bounds."""

    run: PastRun
    status: str
    value: float | None
    low: float | None = None
    high: float | None = None


def read_history(root: Path, *, on_skip: Callable[[str], None], columns: Sequence[str] = ()) -> list[PastRun]:
    """Read every run below ``root``, oldest first: identity, status and ``columns`` of each cell.

    Call ``on_skip`` with the reason if a run cannot be read. Raise UsageError if there is no such folder.
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


def points_of(runs: Sequence[PastRun], metric: str, chosen: Mapping[str, object]) -> dict[_Key, list[Point]]:
    """Map the identity of each cell to its points in all runs; cells without any value are left out.

    Read ``runs`` with ``columns_of(metric)``; ``chosen`` maps identity fields to the values that cells must have.
    """
    names = columns_of(metric)
    points: dict[_Key, list[Point]] = {}
    for run in runs:
        table = run.table[(run.table["status"] != "ok") | run.table[metric].notna()]
        for name, value in chosen.items():
            table = table[table[name].astype("object") == value]
        for row in table.to_dict("records"):
            key = tuple(None if pd.isna(row[name]) else row[name] for name in IDENTITY_FIELDS)
            status = str(row["status"])
            numbers = [float(row[name]) if status == "ok" and pd.notna(row[name]) else None for name in names]
            points.setdefault(key, []).append(Point(run, status, *numbers))
    return {key: each for key, each in points.items() if any(point.value is not None for point in each)}


def columns_of(metric: str) -> list[str]:
    """List the columns that the history of a metric needs; raise UsageError for an unknown metric."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    spread = interval_columns(METRICS[metric])
    return [metric, *(spread[bound] for bound in ("ci_low", "ci_high") if bound in spread)]


def _read(run: RunFolder, wanted: Sequence[str]) -> PastRun:
    metadata = run.metadata()
    environment = mapping(metadata.get("environment"))
    hardware, software, context = (mapping(environment.get(key)) for key in ("hardware", "software", "context"))
    device, torch = _device_name(metadata, hardware, context), software.get("torch")
    table, unreadable = _table(run, wanted)
    return PastRun(
        name=run.name,
        created_at=str(metadata.get("created_at") or ""),
        suite=str(mapping(metadata.get("plan")).get("suite") or ""),
        commit=str(context.get("commit") or ""),
        code=str(context.get("code") or ""),
        fingerprint=str(environment.get("fingerprint") or ""),
        machine=", ".join(filter(None, (str(device or ""), torch and f"torch {torch}"))),
        table=table,
        packages=mapping(metadata.get(PACKAGES)),
        unreadable=unreadable,
    )


def _device_name(metadata: Mapping[str, Any], hardware: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """Name the card or the CPU that a run was measured on; without a plan, the first card if there is one."""
    with contextlib.suppress(KeyError, TypeError, IndexError, AttributeError, ValueError):
        plan = metadata.get("plan")
        device = str(plan["groups"][0][0]["device"]) if plan else "cuda:0"
        if device.startswith("cuda"):
            cards = context.get("gpus") or hardware["gpus"]
            return cards[int(device.partition(":")[2] or 0)]["name"] or hardware.get("cpu")
    return hardware.get("cpu")


def _table(run: RunFolder, wanted: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Read the cells of a run, and count the lines of records.jsonl that are not records.

    If table.csv is newer than the records, read it instead: that is a hundred times faster.
    """
    csv, sources = run.path / "table.csv", [path for path in (run.records_path, *run.shards) if path.exists()]
    if csv.is_file() and all(csv.stat().st_mtime_ns >= path.stat().st_mtime_ns for path in sources):
        with contextlib.suppress(ValueError, TypeError, OverflowError, KeyError):  # pandas raises them for odd tables
            return _read_csv(csv, wanted), 0
    records, bad = run.read()
    frame: pd.DataFrame = records_frame(records)[list(wanted)]
    return frame, len(bad)


def _read_csv(csv: Path, wanted: Sequence[str]) -> pd.DataFrame:
    types: dict[Any, Any] = column_types()
    table = pd.read_csv(csv, dtype=types, usecols=lambda name: name in wanted)
    if not {"model", "height", "width", "batch", "status"} <= {*table.columns}:
        raise ValueError("not a table of cells")
    missing = {name: pandas_column([None] * len(table), types[name]) for name in wanted if name not in table}
    filled: pd.DataFrame = table.assign(**missing)
    return filled


RUN_COLUMNS = ("run", "created_at", "suite", "cells_ok", "cells_failed", "commit", "code", "environment", "machine")


def run_rows(runs: Sequence[PastRun]) -> Iterator[dict[str, object]]:
    """Yield a row for each run."""
    for run in runs:
        names = (run.name, run.created_at, run.suite)
        facts = (*names, run.ok, run.failed, run.commit, run.code, run.fingerprint, run.machine)
        yield dict(zip(RUN_COLUMNS, facts, strict=True))
