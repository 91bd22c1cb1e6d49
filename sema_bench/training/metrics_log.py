"""Keep metrics.jsonl of a training: one line per logged step or evaluation, in order, each once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError
from sema_bench.store.files import append_line, write_own
from sema_bench.store.run_folder import lines_of
from sema_bench.text.plain_json import read_json


class MetricsLog:
    """Append entries; the ``step`` of each is the number of steps done so far."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **entry: Any) -> None:
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
    """Read the entries of a log, if there is one, without a torn last line."""
    entries = []
    for line in lines_of(path):
        try:
            entry = read_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and type(entry.get("step")) is int:
            entries.append(entry)
    return entries
