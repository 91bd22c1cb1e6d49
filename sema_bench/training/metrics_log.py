"""metrics.jsonl of a training: one line per logged step or evaluation, in order, never one twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError
from sema_bench.store.files import append_line, write_own
from sema_bench.text.plain_json import read_json


class Journal:
    """Appends lines, each with the ``step`` that it is of (steps done so far).

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **entry: Any) -> None:
        """Append one line.

        Raises:
            StoreError: it could not be written.
        """
        try:
            append_line(self._path, json.dumps(entry, allow_nan=False), sync=False)
        except OSError as problem:
            raise StoreError(
                f"cannot write {self._path}: {problem.strerror}; --resume goes on from the last checkpoint"
            ) from None

    def sync(self) -> None:
        """Bring what was written to the disk, before a checkpoint that counts on it."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps than ``step``: the run goes on from there, and will write them again."""
        if self._path.exists() or self._path.is_symlink():
            entries = read_journal(self._path) if self._path.exists() else []
            kept = [entry for entry in entries if entry["step"] <= step]
            write_own(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a journal; a last line that was torn off is left out.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        if not path.is_file():
            raise StoreError(f"cannot read {path}: it is not a file")
        lines = path.read_bytes().splitlines()
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    entries = []
    for line in lines:
        try:
            entry = read_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
    return entries
