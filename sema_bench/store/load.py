"""Load runs by name or path, to compare, export or show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.record import Record
from sema_bench.spec.units import counted
from sema_bench.store.pytest_benchmark_file import load_pytest_benchmark
from sema_bench.store.run_folder import RunFolder, resume_command
from sema_bench.store.stored_run import StoredRun, planned_cells
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import mapping


def load_run(root: Path, name: str) -> StoredRun:
    """Read a run by its name in ``root``, by the path of its folder, or from a file of pytest-benchmark.

    Records are in the order of the plan; those of other cells come last.

    Raises:
        UsageError, StoreError: there is no such run, or it cannot be read.
    """
    if name.endswith(".json") and not any((folder / "run.json").is_file() for folder in (root / name, Path(name))):
        return load_pytest_benchmark(Path(name))
    folder = RunFolder.open(root, name)
    metadata = folder.metadata()
    records, bad = folder.read()
    if bad and not records:
        why = "not a record"
        try:
            Record.from_json(bad[0])
        except ValueError as problem:
            why = str(problem)
        raise StoreError(f"{folder.records_path} has no line that this release can read: {why}")
    environment = mapping(metadata.get("environment"))
    ranks = {cell.id: rank for rank, cell in enumerate(planned_cells(metadata))}
    return StoredRun(
        name=folder.name,
        records=tuple(sorted(records, key=lambda record: ranks.get(record.cell.id, len(ranks)))),
        hardware=mapping(environment.get("hardware")),
        software=mapping(environment.get("software")),
        metadata=metadata,
        unreadable=len(bad),
        path=folder.path,
    )


def load_runs(root: Path, names: Sequence[str]) -> list[StoredRun]:
    """Read several runs that have records; folders of the same name are shown by their paths."""
    runs = [with_records(load_run(root, name), name) for name in names]
    labels = [run.name for run in runs]
    return [
        dataclasses.replace(run, name=name) if labels.count(run.name) > 1 else run
        for run, name in zip(runs, names, strict=True)
    ]


def with_records(run: StoredRun, name: str, *, kind: str = "run", mend: str = "") -> StoredRun:
    """Return ``run``; raise UsageError if it has no records. ``mend`` says what to do about it; "": resume the run."""
    if run.records:
        return run
    if not run.planned and not mend:
        command = printable(str(run.metadata.get("command") or "an unknown command"))
        raise UsageError(f"{kind} {name!r} holds no cells: {command!r} wrote its figures to {run.path or 'its folder'}")
    records = run.path and run.path / "records.jsonl"
    why = f" ({records} is {'empty' if records.exists() else 'missing'})" if records else ""
    if run.path and not mend:
        mend = f"measure its {counted(len(run.planned), 'cell')} with {resume_command(run.path)}"
    raise UsageError(f"{kind} {name!r} has no records{why}; {mend}")
