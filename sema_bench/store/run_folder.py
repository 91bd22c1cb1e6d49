"""Store a run on disk: ``results/<UTC time>-<suite>/`` with run.json, records.jsonl and the files made from them.

records.jsonl only grows: one line per cell attempt, synced to disk before the next cell starts. A line that cannot be
read is moved to a quarantine file beside it, never overwritten. One driver at a time holds the lock of a run. Each job
on another machine writes its own file in records/; of several records of a cell, the one that started last counts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sema_bench import __version__
from sema_bench.errors import NewerReleaseError, StoreError, UsageError
from sema_bench.spec.files import name_text
from sema_bench.spec.record import SCHEMA_VERSION, Record, check_schema_version
from sema_bench.store.files import append_line, lock_file, utc_now, write_own
from sema_bench.text.plain_json import read_json

#: Folder with one file of records for each writer other than the driver.
SHARDS = "records"
RESERVED_NAMES = ("baselines", "history")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class RunFolder:
    """One run under a results folder; ``lock()`` must be held to write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records_path = path / "records.jsonl"
        self._lock_descriptor: int | None = None

    @property
    def name(self) -> str:
        """The name of the folder, as text."""
        return name_text(self.path.name)

    @property
    def shards(self) -> list[Path]:
        """The record files of writers other than the driver."""
        return sorted((self.path / SHARDS).glob("*.jsonl"))

    @classmethod
    def create(
        cls, root: Path, suite: str, name: str | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Make a folder in ``root``, named ``name`` or ``<UTC time>-<suite>``, with ``metadata`` as its run.json."""
        check_free(root, name)
        base = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{suite}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            for each in [name] if name else [base, *(f"{base}-{number}" for number in range(2, 100))]:
                path = root / each
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
            else:
                check_free(root, name)  # another process made it
                raise StoreError(f"cannot name a new run in {root}: {base} and 98 more are taken")
        except OSError as problem:
            why = "it is not a folder" if isinstance(problem, FileExistsError) else problem.strerror
            raise StoreError(f"cannot write to {root}: {why}; choose another folder with --out") from None
        run = cls(path)
        try:
            run.write_metadata(metadata or {})
        except StoreError:
            with contextlib.suppress(OSError):
                path.rmdir()
            raise
        return run

    def discard(self) -> None:
        """Remove the folder if it holds only run.json."""
        with contextlib.suppress(OSError):
            if {entry.name for entry in self.path.iterdir()} <= {"run.json", ".lock"}:
                shutil.rmtree(self.path)

    @classmethod
    def open(cls, root: Path, name: str) -> RunFolder:
        """Open the run called ``name`` in ``root``, or the path of a run; raise UsageError if there is none."""
        path = Path(name) if os.sep in name else root / name
        with contextlib.suppress(OSError):  # the name may not be a valid path
            if (path / "run.json").is_file():
                return cls(path)
        paths = sorted(root.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        runs = [path.parent.name for path in paths[:5]]
        known = f"newest runs: {', '.join(runs)}" if runs else "there are no runs there yet"
        if root.suffix or root.is_file():
            known += "; --out is the results folder, and -o the file that is written"
        raise UsageError(f"no run {name!r} in {root}; {known}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Lock this run for writing; raise UsageError, which names the holder, if it is locked."""
        path = self.path / ".lock"

        def refuse(holder: str) -> None:
            raise UsageError(f"run {self.name} is being written by {holder}; wait for it or stop it first")

        note = f"process {os.getpid()} on {os.uname().nodename}, started {utc_now()}"
        try:
            self._lock_descriptor = lock_file(path, note=note, mode=0o644, on_held=refuse)
        except OSError as problem:
            where = path if problem.errno == errno.ELOOP else self.path
            raise StoreError(f"cannot write to {where}: {problem.strerror}") from None
        try:
            yield
            os.ftruncate(self._lock_descriptor, 0)
        finally:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Write run.json: plan, environment, command line."""
        write_own(self.path / "run.json", json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")

    def metadata(self) -> dict[str, Any]:
        """Read run.json; raise StoreError if it cannot be read, or if a newer release wrote the run."""
        path = self.path / "run.json"
        if path.exists() and not path.is_file():
            raise StoreError(f"cannot read {path}: it is not a file")
        try:
            body = read_json(path.read_bytes())
        except (OSError, ValueError) as problem:
            raise StoreError(f"cannot read {path}: {problem}") from None
        if not isinstance(body, dict):
            raise StoreError(f"cannot read {path}: not a JSON object")
        check_schema_version(body.get("schema_version"), path=self.path)
        for file in (self.records_path, *self.shards):
            with contextlib.suppress(OSError):
                lines = file.read_bytes() if file.is_file() else b""
                for match in re.finditer(rb'^\{"schema_version": ?(\d{1,9})\b', lines, re.MULTILINE):
                    check_schema_version(int(match[1]), path=file)
        return body

    def append(self, record: Record) -> None:
        """Append ``record`` to records.jsonl and sync it to disk; on StoreError every earlier record is intact."""
        if self._lock_descriptor is None:
            raise RuntimeError("append needs the run's lock; use `with run.lock():`")
        if self.records_path.is_symlink() and not self.records_path.is_char_device():  # a device has nothing to lose
            raise StoreError(f"cannot write {self.records_path}: it is a link; put the file itself there")
        try:
            append_line(self.records_path, record.to_json(), sync=True)
        except OSError as problem:
            raise StoreError(
                f"cannot write {self.records_path}: {problem.strerror}; "
                f"earlier records are safe; fix that, then {resume_command(self.path)}"
            ) from None

    def records(self) -> list[Record]:
        """Read the latest record of each cell, in the order in which the cells were first recorded."""
        return self.read()[0]

    def read(self) -> tuple[list[Record], list[bytes]]:
        """Read the latest record of each cell, and the lines that are not records."""
        records, bad = _parse(lines_of(self.records_path))
        latest = {record.cell.id: record for record in records}
        for shard in self.shards:
            for record in records_in(shard):
                known = latest.get(record.cell.id)
                if known is None or record.started_at > known.started_at:
                    latest[record.cell.id] = record
        return list(latest.values()), bad

    def quarantine(self) -> Path | None:
        """Copy records.jsonl to a file beside it and drop its unreadable lines; return that file, or None."""
        if self._lock_descriptor is None:
            raise RuntimeError("quarantine needs the run's lock")
        lines = lines_of(self.records_path)
        bad = set(_parse(lines)[1])
        torn = bool(lines) and not self.records_path.read_bytes().endswith(b"\n")
        if not bad and not torn:
            return None
        copy = None
        if bad:
            number = 1 + len(list(self.path.glob("records.quarantine-*.jsonl")))
            copy = self.path / f"records.quarantine-{number}.jsonl"
            write_own(copy, self.records_path.read_bytes())
        write_own(self.records_path, b"".join(line + b"\n" for line in lines if line not in bad))
        return copy


def creation_facts() -> dict[str, Any]:
    """Collect release, command line and time of a new run, for its run.json."""
    return {
        "schema_version": SCHEMA_VERSION,
        "sema_bench": __version__,
        "command": shlex.join(["sema-bench", *sys.argv[1:]]),
        "created_at": utc_now(),
    }


def resume_command(run: Path, *, command: str = "run") -> str:
    """Return the command line that resumes the run in the folder ``run``."""
    return command_in(str(run.parent), command, "--resume", name_text(run.name))


def command_in(out: str, *words: str) -> str:
    """Return a command line of sema-bench; it names the results folder ``out`` unless that is the default."""
    return shlex.join(["sema-bench", *words, *([] if out == "results" else ["--out", out])])


def check_free(root: Path, name: str | None) -> None:
    """Raise UsageError if ``name`` is taken in ``root`` or is not a plain folder name."""
    if name is None:
        return
    path = root / check_run_name(name)
    if path.is_dir():
        raise UsageError(
            f"run {name!r} exists already in {root}; resume it with --resume {name} or choose another name"
        )
    if path.exists() or path.is_symlink():
        raise UsageError(f"{path} is in the way; choose another name")


def check_run_name(name: str) -> str:
    """Return ``name``; raise UsageError unless it is a plain folder name inside the results folder."""
    if not _RUN_NAME.fullmatch(name):
        raise UsageError(
            f"bad run name {name!r}; use letters, digits, '.', '_', '+' and '-', starting with a letter or digit"
        )
    if name.lower() in RESERVED_NAMES:
        raise UsageError(f"run name {name!r} is reserved for the folder's own {name.lower()}; choose another")
    return name


def lines_of(path: Path) -> list[bytes]:
    """Read the lines of a file of records, none if it is missing; raise StoreError if it cannot be read."""
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is not a file")
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    return [line for line in content.split(b"\n") if line.strip()]


def records_in(shard: Path) -> list[Record]:
    """Read the records of a file that a writer still appends to; its last line may be incomplete."""
    return _parse(lines_of(shard))[0]


def _parse(lines: Iterable[bytes]) -> tuple[list[Record], list[bytes]]:
    records, bad = [], []
    for line in lines:
        try:
            records.append(Record.from_json(line))
        except NewerReleaseError:
            raise
        except ValueError:
            bad.append(line)
    return records, bad
