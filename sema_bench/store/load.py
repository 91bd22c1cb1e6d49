"""Load runs by name or path, to compare, export or show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.record import Record
from sema_bench.store.loaded_run import LoadedRun, planned_cells
from sema_bench.store.run_folder import RunFolder
from sema_bench.text.escape import printable


def load_run(root: Path, name: str) -> LoadedRun:
    """Read a run by its name in ``root``, or by the path of its folder.

    Raises:
        UsageError: there is no such run.
        StoreError: run.json or records.jsonl cannot be read, or none of their lines is of a schema known here.
    """
    if name.endswith(".json") and not (root / name / "run.json").is_file():
        from sema_bench.store.pytest_benchmark_file import load_pytest_benchmark

        return load_pytest_benchmark(Path(name))
    folder = RunFolder.open(root, name)
    metadata = folder.metadata()
    records, bad = folder.read()
    if bad and not records:
        raise StoreError(f"{folder.records_path} has no line that this release can read: {_why(bad)}")
    environment = metadata.get("environment")
    parts = environment if isinstance(environment, Mapping) else {}
    hardware, software = (parts.get(key) for key in ("hardware", "software"))
    return LoadedRun(
        name=folder.name,
        records=_as_planned(records, metadata),
        hardware=hardware if isinstance(hardware, Mapping) else {},
        software=software if isinstance(software, Mapping) else {},
        metadata=metadata,
        unreadable=len(bad),
        path=folder.path,
    )


def load_runs(root: Path, names: Sequence[str]) -> list[LoadedRun]:
    """Read several runs; names of folders that are the same are told apart by their paths.

    Raises:
        UsageError, StoreError: see ``load_run``; or a run has no records at all.
    """
    runs = [with_records(load_run(root, name), name) for name in names]
    labels = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=name) if labels.count(run.name) > 1 else run
        for run, name in zip(runs, names, strict=True)
    ]


def with_records(run: LoadedRun, name: str, *, kind: str = "run", mend: str = "") -> LoadedRun:
    """Return ``run`` if it has records.

    Args:
        run: what was loaded.
        name: how it was asked for.
        kind: a run, or a baseline.
        mend: what to do if it has none; by default, finish the run.

    Raises:
        UsageError: it has none; the message names its folder.
    """
    if run.records:
        return run
    if not run.planned and not mend:
        command = printable(str(run.metadata.get("command") or "an unknown command"))
        where = f"{run.path}" if run.path else "its folder"
        raise UsageError(f"{kind} {name!r} holds no cells: it is of {command!r}, whose figures are in {where}")
    mend = mend or f"finish it with sema-bench run --resume {name}"
    why = ""
    if run.path:
        records = run.path / "records.jsonl"
        why = f" ({records} is {'empty' if records.exists() else 'missing'})"
    raise UsageError(f"{kind} {name!r} has no records{why}; {mend}")


def _as_planned(records: Sequence[Record], metadata: Mapping[str, Any]) -> tuple[Record, ...]:
    """Return records in the order of the plan, whatever order the cells ran in; what it does not have comes last."""
    places = {cell.id: place for place, cell in enumerate(planned_cells(metadata))}
    return tuple(sorted(records, key=lambda record: places.get(record.cell.id, len(places))))


def _why(bad: Sequence[bytes]) -> str:
    try:
        Record.from_json(bad[0])
    except ValueError as problem:
        return str(problem)
    return "not a record"
