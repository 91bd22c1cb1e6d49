"""The option ``--out``: a results folder, or the URL of one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sema_bench.errors import UsageError

if TYPE_CHECKING:
    from sema_bench.store.remote import RemoteResults

Out = Annotated[
    str, typer.Option("--out", metavar="FOLDER", help="Results folder, or the URL of one, e.g. s3://bucket/results.")
]


def local_folder(out: str | Path) -> Path:
    """Return the results folder of a command that writes on this machine alone.

    Raises:
        UsageError: it is a URL.
    """
    if "://" in str(out):
        raise UsageError(f"--out takes a folder of this machine here, and {out} is a URL")
    return Path(out)


LocalOut = Annotated[Path, typer.Option("--out", metavar="FOLDER", parser=local_folder, help="Results folder.")]


def remote_results(out: str) -> RemoteResults | None:
    """Return the results at a URL; None where ``out`` is a folder."""
    if "://" not in out:
        return None
    from sema_bench.store.remote import RemoteResults

    return RemoteResults(out)


def folder_to_read(out: str) -> Path:
    """Return the results folder; of one at a URL a copy of all its runs, brought up to date."""
    remote = remote_results(out)
    if remote is None:
        return Path(out)
    for name in remote.names():
        remote.pull(name)
    return remote.root


def runs_to_read(out: str, names: Iterable[str]) -> tuple[Path, list[str]]:
    """Return the results folder and the runs ``names`` of it; those that are at a URL, as copies brought up to date.

    Args:
        out: results folder, or the URL of one.
        names: of runs in it, folders of runs, files of pytest-benchmark, or URLs of runs.
    """
    remote = remote_results(out)
    found = []
    for name in names:
        store, _, run = name.rstrip("/").rpartition("/") if "://" in name else ("", "", name)
        results = remote_results(store) if store else remote
        if results is None:
            found.append(name)
            continue
        results.pull(run)
        found.append(str(results.root / run) if store else run)
    return remote.root if remote else Path(out), found
