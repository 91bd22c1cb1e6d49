"""The option ``--out``: a results folder, or the URL of one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sema_bench.remote import RemoteResults

Out = Annotated[
    str, typer.Option("--out", metavar="FOLDER", help="Results folder, or the URL of one, e.g. s3://bucket/results.")
]


def remote_results(out: str) -> RemoteResults | None:
    """Return the results at a URL; None where ``out`` is a folder."""
    if "://" not in out:
        return None
    from sema_bench.remote import RemoteResults

    return RemoteResults(out)


def folder_to_read(out: str, names: Iterable[str] | None = None) -> Path:
    """Return the results folder; of one at a URL a copy of the runs ``names`` (None: of all), brought up to date."""
    remote = remote_results(out)
    if remote is None:
        return Path(out)
    for name in remote.names() if names is None else names:
        remote.pull(name)
    return remote.root
