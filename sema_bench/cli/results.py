"""Read runs from a results folder, or from the URL of one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sema_bench.cli.output import put_line
from sema_bench.spec.units import counted
from sema_bench.store.load import load_runs
from sema_bench.store.remote import RemoteResults
from sema_bench.store.stored_run import StoredRun

if TYPE_CHECKING:
    from sema_bench.store.history import PastRun


def remote_results(out: str) -> RemoteResults | None:
    """Open the results at a URL; None if ``out`` is a folder."""
    return RemoteResults(out) if "://" in out else None


def folder_to_read(out: str) -> Path:
    """Return the results folder; for a URL, an up-to-date copy of all its runs."""
    remote = remote_results(out)
    if remote is None:
        return Path(out)
    for name in remote.names():
        remote.pull(name)
    return remote.root


def runs_to_read(out: str, names: Iterable[str]) -> tuple[Path, list[str]]:
    """Return the results folder and its runs ``names``; runs at a URL are copied first.

    Args:
        out: results folder, or the URL of one.
        names: names of runs in it, folders of runs, files of pytest-benchmark, or URLs of runs.
    """
    remote = remote_results(out)
    local = []
    for name in names:
        store, _, run = name.rstrip("/").rpartition("/") if "://" in name else ("", "", name)
        results = remote_results(store) if store else remote
        if results is not None:
            results.pull(run)
            name = str(results.root / run) if store else run
        local.append(name)
    return remote.root if remote else Path(out), local


def read_runs(out: str, names: Iterable[str]) -> list[StoredRun]:
    """Load runs (see ``runs_to_read``), and warn about their unreadable lines."""
    loaded = load_runs(*runs_to_read(out, names))
    warn_unreadable(*loaded)
    return loaded


def warn_unreadable(*runs: StoredRun | PastRun) -> None:
    """Print on stderr how many lines of each run are not records and are left out."""
    for run in runs:
        if run.unreadable:
            left_out = "is not a record and is left out" if run.unreadable == 1 else "are not records and are left out"
            put_line(f"{counted(run.unreadable, 'line')} of {run.name} {left_out}", err=True)


def warn_skipped(problem: str) -> None:
    """Print on stderr why something is left out."""
    put_line(f"left out: {problem}", err=True)
