"""A run on disk: ``results/<UTC time>-<suite>/`` with run.json, records.jsonl and what is derived from them.

records.jsonl only grows: one line per cell attempt, synced to disk before the next cell starts. A line
that cannot be read is moved to a quarantine file beside it, never overwritten. One driver at a time
holds the lock of a run; the kernel releases it when that process dies, however it dies. Jobs on other machines write
to a file each in records/; of several records of a cell the one that was begun last counts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sema_bench.errors import NewerReleaseError, StoreError, UsageError
from sema_bench.spec.files import name_text
from sema_bench.spec.record import Record, check_schema_version
from sema_bench.store.files import append_line, utc_now, write_own
from sema_bench.text.plain_json import read_json

#: Folder of what other writers than the driver have recorded, a file for each of them.
SHARDS = "records"
#: Folders of a results folder that are no runs.
RESERVED_NAMES = ("baselines", "history")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


class RunFolder:
    """One run under a results folder.

    Use ``create`` or ``open``; both return a folder that can be read. ``lock()`` must be held to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records_path = path / "records.jsonl"
        self._lock_descriptor: int | None = None

    @property
    def name(self) -> str:
        """Name of the folder, as text."""
        return name_text(self.path.name)

    @property
    def shards(self) -> list[Path]:
        """Files of records by other writers than the driver."""
        return sorted((self.path / SHARDS).glob("*.jsonl"))

    @classmethod
    def create(
        cls, root: Path, suite: str, name: str | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> RunFolder:
        """Make a new run folder in ``root``, named ``name`` or ``<UTC time>-<suite>``; ``metadata`` is its run.json.

        A folder that cannot be completed is removed again.

        Raises:
            UsageError: ``name`` is taken or is not a plain folder name.
            StoreError: ``root`` cannot be written.
        """
        stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        base = name or f"{stamp}-{suite}"
        check_free(root, name)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            why = "it is not a folder" if isinstance(problem, FileExistsError) else problem.strerror
            raise StoreError(f"cannot write to {root}: {why}; choose another folder with --out") from None
        for attempt in range(1, 100):
            path = root / (base if attempt == 1 else f"{base}-{attempt}")
            try:
                path.mkdir()
            except FileExistsError:
                if name:
                    check_free(root, name)
                continue
            except OSError as problem:
                raise StoreError(
                    f"cannot write to {root}: {problem.strerror}; choose another folder with --out"
                ) from None
            run = cls(path)
            try:
                run.write_metadata(metadata or {})
            except StoreError:
                with contextlib.suppress(OSError):
                    path.rmdir()
                raise
            return run
        raise StoreError(f"cannot name a new run in {root}: {base} and 98 more are taken")

    def discard(self) -> None:
        """Remove a folder in which nothing but run.json was written yet; any other is left alone."""
        with contextlib.suppress(OSError):
            if {entry.name for entry in self.path.iterdir()} <= {"run.json", ".lock"}:
                shutil.rmtree(self.path)

    @classmethod
    def open(cls, root: Path, name: str) -> RunFolder:
        """Return the run called ``name`` in ``root`` (a path to the run's own folder works too).

        Raises:
            UsageError: there is no such run; the newest ones are named.
        """
        path = Path(name) if os.sep in name else root / name
        with contextlib.suppress(OSError):  # a name that is no path is no run
            if (path / "run.json").is_file():
                return cls(path)
        found = sorted(root.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        runs = [path.parent.name for path in found[:5]]
        known = f"newest runs: {', '.join(runs)}" if runs else "there are no runs there yet"
        if root.suffix or root.is_file():
            known += "; --out is the results folder, and -o the file that is written"
        raise UsageError(f"no run {name!r} in {root}; {known}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this run for writing.

        Raises:
            UsageError: another process holds it; the message names that process.
        """
        path = self.path / ".lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as problem:
            where = path if problem.errno == errno.ELOOP else self.path
            raise StoreError(f"cannot write to {where}: {problem.strerror}") from None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise StoreError(f"cannot write to {path}: it is not a file; remove it")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise UsageError(
                    f"run {self.name} is being written by {holder}; wait for it or stop it first"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}, started {utc_now()}\n".encode(), 0)
            self._lock_descriptor = descriptor
            yield
            os.ftruncate(descriptor, 0)
        finally:
            self._lock_descriptor = None
            os.close(descriptor)

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Write run.json: plan, environment, command line."""
        write_own(self.path / "run.json", json.dumps(metadata, indent=2, ensure_ascii=False) + "\n")

    def metadata(self) -> dict[str, Any]:
        """Return what run.json holds.

        Raises:
            StoreError: the file is missing, is not JSON, or a newer release wrote the run.
        """
        path = self.path / "run.json"
        if path.exists() and not path.is_file():
            raise StoreError(f"cannot read {path}: it is not a file")
        try:
            body = read_json(path.read_bytes())
        except (OSError, ValueError) as problem:
            raise StoreError(f"cannot read {self.path / 'run.json'}: {problem}") from None
        if not isinstance(body, dict):
            raise StoreError(f"cannot read {self.path / 'run.json'}: not a JSON object")
        with _naming(self.path):
            check_schema_version(body.get("schema_version"))
        self.check_records_version()
        return body

    def check_records_version(self) -> None:
        """Look at the schema version of each record, without reading it.

        Raises:
            StoreError: a newer release wrote one of them.
        """
        for path in (self.records_path, *self.shards):
            with contextlib.suppress(OSError), _naming(path):
                if not path.is_file():
                    continue
                for found in re.finditer(rb'^\{"schema_version": ?(\d{1,9})\b', path.read_bytes(), re.MULTILINE):
                    check_schema_version(int(found[1]))

    def append(self, record: Record) -> None:
        """Add ``record`` to records.jsonl and sync it to disk.

        Raises:
            StoreError: it could not be written; every earlier record is intact.
        """
        if self._lock_descriptor is None:
            raise RuntimeError("append needs the run's lock; use `with run.lock():`")
        if self.records_path.is_symlink() and not self.records_path.is_char_device():  # a device has nothing to lose
            raise StoreError(f"cannot write {self.records_path}: it is a link; put the file itself there")
        try:
            append_line(self.records_path, record.to_json(), sync=True)
        except OSError as problem:
            raise StoreError(
                f"cannot write {self.records_path}: {problem.strerror}; "
                f"earlier records are safe; mend that and --resume {self.name}"
            ) from None

    def records(self) -> list[Record]:
        """Return the latest record of each cell, in the order in which the cells were first recorded."""
        return self.read()[0]

    def read(self) -> tuple[list[Record], list[bytes]]:
        """Return (latest record of each cell, lines that are not records)."""
        bad: list[bytes] = []
        latest = {record.cell.id: record for record in _parsed(self._lines(), bad)}
        for shard in self.shards:
            for record in records_in(shard):
                known = latest.get(record.cell.id)
                if known is None or record.started_at > known.started_at:
                    latest[record.cell.id] = record
        return list(latest.values()), bad

    def quarantine(self) -> Path | None:
        """Move unreadable lines out of records.jsonl into a file beside it; return that file, or None if all is well.

        The original file is kept whole as the quarantine file; records.jsonl is rewritten with its readable lines.
        """
        if self._lock_descriptor is None:
            raise RuntimeError("quarantine needs the run's lock")
        lines = self._lines()
        good = [line for line in lines if _is_record(line)]
        torn = bool(lines) and not self.records_path.read_bytes().endswith(b"\n")
        if len(good) == len(lines) and not torn:
            return None
        kept = None
        if len(good) != len(lines):
            number = 1 + len(list(self.path.glob("records.quarantine-*.jsonl")))
            kept = self.path / f"records.quarantine-{number}.jsonl"
            write_own(kept, self.records_path.read_bytes())
        write_own(self.records_path, b"".join(line + b"\n" for line in good))
        return kept

    def _lines(self) -> list[bytes]:
        return _lines_of(self.records_path)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file that an error is about."""
    try:
        yield
    except NewerReleaseError as problem:
        raise NewerReleaseError(f"{path}: {problem}") from None


def check_free(root: Path, name: str | None) -> None:
    """Look whether a new run in ``root`` can be called ``name``, before work is done for it.

    Raises:
        UsageError: it is no plain folder name, or taken.
    """
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
    """Return ``name`` if it is a plain folder name that stays inside the results folder.

    Raises:
        UsageError: it is not.
    """
    if not _RUN_NAME.fullmatch(name):
        raise UsageError(
            f"bad run name {name!r}; use letters, digits, '.', '_', '+' and '-', starting with a letter or digit"
        )
    if name.lower() in RESERVED_NAMES:
        raise UsageError(f"run name {name!r} is reserved for the folder's own {name.lower()}; choose another")
    return name


def _lines_of(path: Path) -> list[bytes]:
    """Return the lines of a file of records, none where there is no such file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise StoreError(f"{path} is not a file")
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise StoreError(f"cannot read {path}: {problem.strerror}") from None
    return [line for line in content.split(b"\n") if line.strip()]


def records_in(shard: Path) -> Iterator[Record]:
    """Yield the records of a file that one writer adds to; its last line may still be on its way."""
    return _parsed(_lines_of(shard), [])


def _parsed(lines: Iterable[bytes], bad: list[bytes]) -> Iterator[Record]:
    """Yield the records that ``lines`` hold; other lines go to ``bad``."""
    for line in lines:
        try:
            yield Record.from_json(line)
        except NewerReleaseError:
            raise
        except ValueError:
            bad.append(line)


def _is_record(line: bytes) -> bool:
    try:
        Record.from_json(line)
    except NewerReleaseError:
        raise
    except ValueError:
        return False
    return True
