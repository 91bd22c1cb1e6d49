"""Save baselines, named copies of runs under ``results/baselines/``, and load them for comparisons."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sema_bench.errors import StoreError, UsageError
from sema_bench.spec.units import counted
from sema_bench.store.files import write_own
from sema_bench.store.load import load_run, with_records
from sema_bench.store.run_folder import RunFolder, check_run_name, resume_command
from sema_bench.store.stored_run import StoredRun

FOLDER = "baselines"


def save_baseline(root: Path, run: str, name: str, *, replace: bool) -> Path:
    """Copy the records of a finished run into the baseline ``name``; return its folder.

    Raise UsageError for an unsuitable run or name. Raise StoreError if writing fails; an old baseline is unchanged.
    """
    check_run_name(name)
    source = RunFolder.open(root, run)
    loaded = load_run(root, run)
    if not loaded.records:
        raise UsageError(f"run {run!r} has no records; an empty baseline would pass everything")
    if loaded.unreadable:
        are_not = "is not a record" if loaded.unreadable == 1 else "are not records"
        raise UsageError(f"{counted(loaded.unreadable, 'line')} of run {run!r} {are_not}; measure it again")
    if loaded.missing:
        raise UsageError(f"run {run!r} lacks {loaded.missing} of its cells; resume with {resume_command(source.path)}")
    target = root / FOLDER / name
    _recover(target)
    if target.exists() and not (target / "run.json").is_file():
        kind = UsageError if target.is_dir() else StoreError
        raise kind(f"{target} is not a baseline; choose another name")
    if target.exists() and not replace:
        raise UsageError(f"there is a baseline {name!r} already; --replace overwrites it")
    aside = root / FOLDER / f".{name}.new"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        lines = "".join(record.to_json() + "\n" for record in loaded.records)
        write_own(aside / "records.jsonl", lines)
        write_own(aside / "run.json", (source.path / "run.json").read_bytes())
        if target.exists():
            target.rename(_before(target))
        aside.rename(target)
        shutil.rmtree(_before(target), ignore_errors=True)
    except OSError as problem:
        raise StoreError(f"cannot write {target}: {problem.strerror}") from None
    finally:
        _recover(target)
        shutil.rmtree(aside, ignore_errors=True)
    return target


def load_baseline(root: Path, name: str) -> StoredRun:
    """Read a baseline by its name, or any run by its name or path; raise UsageError if neither has records."""
    folder = root / FOLDER
    if name == Path(name).name:
        _recover(folder / name)
    if (folder / name / "run.json").is_file():
        mend = f"save a run again with sema-bench baseline save RUN {name} --replace"
        return with_records(load_run(folder, name), name, kind="baseline", mend=mend)
    try:
        run = load_run(root, name)
    except UsageError:
        if name.endswith(".json") and Path(name).exists():
            raise
        file = f", and no file {name!r}" if name.endswith(".json") else ""
        known = ", ".join(path.name for path in _folders(root)) or "none yet; sema-bench baseline save RUN"
        raise UsageError(f"no baseline and no run {name!r} in {root}{file}; baselines: {known}") from None
    return with_records(run, name)


def baselines(root: Path, *, on_skip: Callable[[str], None]) -> Iterator[StoredRun]:
    """Yield all baselines by name; call ``on_skip`` with the reason if one cannot be read."""
    for path in _folders(root):
        try:
            yield load_run(path.parent, path.name)
        except (StoreError, UsageError) as problem:
            on_skip(str(problem))


def _before(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Restore a baseline whose replacement was interrupted."""
    with contextlib.suppress(OSError):
        if not target.exists() and _before(target).is_dir():
            _before(target).rename(target)


def _folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in (root / FOLDER).glob("*/run.json") if not path.parent.name.startswith("."))
