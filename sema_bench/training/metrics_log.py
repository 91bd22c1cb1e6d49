"""metrics.jsonl of a training: one line per logged step or evaluation, in order, each once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError
from sema_bench.store.files import append_line, write_own
from sema_bench.text.plain_json import read_json


class MetricsLog:
    """Append entries, each with its ``step``, the number of steps done so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **entry: Any) -> None:
        """Append one entry; raise StoreError if that fails."""
        try:
            append_line(self._path, json.dumps(entry, allow_nan=False), sync=False)
        except OSError as problem:
            raise StoreError(
                f"cannot write {self._path}: {problem.strerror}; --resume continues from the last checkpoint"
            ) from None

    def sync(self) -> None:
        """Sync to disk, before a checkpoint that relies on it."""
        if self._path.exists():
            with self._path.open("rb") as file:
                os.fsync(file.fileno())

    def forget_after(self, step: int) -> None:
        """Drop the entries after ``step``: the run resumes there and writes them again."""
        if self._path.exists() or self._path.is_symlink():
            lines = [json.dumps(entry) + "\n" for entry in read_metrics(self._path) if entry["step"] <= step]
            write_own(self._path, "".join(lines))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a log, if there is one, without a torn last line; raise StoreError if that fails."""
    if not path.exists():
        return []
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
