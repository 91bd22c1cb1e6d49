"""Keep runs at a URL that fsspec knows (``--out s3://bucket/results``): write a local copy, publish it as it grows.

Object stores cannot append and have no locks. So each writer publishes its records as one object,
``records/<writer>.jsonl``, and readers merge them. A driver announces itself with an object that it renews; a second
driver refuses to start while that object is fresh.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sema_bench.errors import StoreError, UsageError, first_line
from sema_bench.store.files import cache_folder, utc_now, write_own
from sema_bench.store.run_folder import SHARDS, RunFolder, check_run_name
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import read_json

#: Seconds between two publications of records, and between two renewals of a driver's announcement.
PUBLISH_S, RENEW_S = 5.0, 30.0
#: Two drivers that start at the same moment see each other after this long.
SETTLE_S = 2.0
#: A driver that has not renewed its announcement for this long is gone.
STALE_S = 150.0
_DRIVER = "driver.json"
_READ = re.compile(rf"(run\.json|{SHARDS}/[A-Za-z0-9._-]+\.jsonl)")


class RemoteResults:
    """A results folder at a URL; ``root`` is its local copy. Raises UsageError if no installed package opens it."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
            import fsspec.asyn
        except ImportError:
            raise UsageError(f"--out {url}: URLs need fsspec; pip install 'sema-bench[remote]'") from None
        self.url = url.rstrip("/")
        with self._one_line_errors("cannot open"):
            self._files, path = fsspec.core.url_to_fs(self.url)
            # Object stores need no folders, and s3fs would create a misspelt bucket.
            self._has_folders = not isinstance(self._files, fsspec.asyn.AsyncFileSystem)
        self._path = str(path).rstrip("/")
        key = re.sub(r"[^A-Za-z0-9.-]+", "-", self.url).strip("-")
        self.root = cache_folder() / "remote" / f"{key[:100]}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    def pull(self, name: str) -> None:
        """Fetch the files of a run that other writers have published."""
        check_run_name(name)
        with self._one_line_errors("cannot read"):
            self._files.invalidate_cache()
            objects = self._files.find(f"{self._path}/{name}", detail=True)
            own = self._shard(name)
            for path, facts in objects.items():
                part = path.removeprefix(f"{self._path}/{name}/")
                if not _READ.fullmatch(part) or part == own:
                    continue
                target = self.root / name / part
                if target.exists() and target.stat().st_size == facts["size"]:
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                write_own(target, self._files.cat_file(path))

    def names(self) -> list[str]:
        """List the names of the runs."""
        with self._one_line_errors("cannot list"):
            self._files.invalidate_cache()
            if not self._files.exists(self._path):
                return []
            paths = self._files.ls(self._path, detail=False)
        names = []
        for path in sorted(paths):
            with contextlib.suppress(UsageError):
                names.append(check_run_name(str(path).rstrip("/").rpartition("/")[2]))
        return names

    def check_writable(self) -> None:
        """Write an object and remove it; raise StoreError if that fails."""
        probe = f"{self._path}/.{secrets.token_hex(8)}"
        with self._one_line_errors("cannot put results into"):
            if self._has_folders:
                self._files.makedirs(self._path, exist_ok=True)
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)

    def publish(self, run: RunFolder, *, records_only: bool = False) -> None:
        """Write the files of a run; on a StoreError they are still in the local copy."""
        with self._one_line_errors("cannot write to"):
            for path in [run.records_path] if records_only else sorted(run.path.rglob("*")):
                part = path.relative_to(run.path)
                hidden = any(piece.startswith(".") for piece in part.parts)
                if path.is_file() and not hidden and part.parts[0] not in (SHARDS, "unfinished"):
                    name = self._shard(run.name) if path == run.records_path else str(part)
                    self._put(run, name, path.read_bytes())

    @contextlib.contextmanager
    def driving(self, run: RunFolder, *, warn: Callable[[str], None]) -> Iterator[None]:
        """Publish the records of a run every few seconds; raise UsageError if another process drives the run."""
        mine = {"token": secrets.token_hex(8), "host": _host(), "process": os.getpid()}
        self._refuse_if_driven(run, mine)
        self._announce(run, mine)
        time.sleep(SETTLE_S)
        self._refuse_if_driven(run, mine)  # of two that started at once, the later one continues
        self.pull(run.name)
        self.publish(run)
        over = threading.Event()

        def keep_up() -> None:
            published = renewed = time.monotonic()
            size = -1
            while not over.wait(PUBLISH_S / 10):
                try:
                    if time.monotonic() - renewed > RENEW_S:
                        self._refuse_if_driven(run, mine)
                        self._announce(run, mine)
                        renewed = time.monotonic()
                    now = run.records_path.stat().st_size if run.records_path.exists() else -1
                    if now != size and time.monotonic() - published > PUBLISH_S:
                        self.publish(run, records_only=True)
                        published, size = time.monotonic(), now
                except UsageError as problem:  # this process slept, and another one took over the run
                    warn(str(problem))
                    _thread.interrupt_main(signal.SIGTERM)
                    return
                except Exception as problem:
                    published = time.monotonic()
                    warn(f"{problem}; retrying")

        thread = threading.Thread(target=keep_up, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self.publish(run)
            if (self._announced(run) or {}).get("token") == mine["token"]:
                with self._one_line_errors("cannot write to"):
                    self._files.rm_file(f"{self._path}/{run.name}/{_DRIVER}")

    def _refuse_if_driven(self, run: RunFolder, mine: dict[str, Any]) -> None:
        other = self._announced(run)
        if other is None or other.get("token") == mine["token"]:
            return
        same_host = other.get("host") == mine["host"]
        process, renewed = other.get("process"), other.get("renewed")
        gone = same_host and not (type(process) is int and Path(f"/proc/{process}").exists())
        age = time.time() - renewed if isinstance(renewed, int | float) and abs(renewed) < 2**53 else math.inf
        if not gone and -STALE_S < age < STALE_S:  # no clock is further ahead than that
            raise UsageError(
                f"run {run.name} is being written by process {printable(str(process))} on "
                f"{printable(str(other.get('host')).partition(' ')[0])}; wait for it or stop it first "
                f"(it counts as gone {STALE_S:.0f} s after its last sign of life)"
            )

    def _announced(self, run: RunFolder) -> dict[str, Any] | None:
        with self._one_line_errors("cannot read"):
            try:
                self._files.invalidate_cache()
                body = read_json(self._files.cat_file(f"{self._path}/{run.name}/{_DRIVER}"))
            except (FileNotFoundError, ValueError):
                return None
        return body if isinstance(body, dict) else None

    def _announce(self, run: RunFolder, mine: dict[str, Any]) -> None:
        with self._one_line_errors("cannot write to"):
            self._put(run, _DRIVER, json.dumps({**mine, "renewed": time.time(), "at": utc_now()}).encode())

    def _put(self, run: RunFolder, part: str, content: bytes) -> None:
        path = f"{self._path}/{run.name}/{part}"
        if self._has_folders:
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.pipe_file(path, content)

    def _shard(self, name: str) -> str:
        """Name this local copy's records at the URL; each copy has its own name."""
        path = self.root / name / ".writer"
        writer = f"{re.sub(r'[^A-Za-z0-9-]+', '-', os.uname().nodename)}-{secrets.token_hex(6)}"
        try:
            writer = path.read_text(encoding="ascii")
        except OSError:
            if path.parent.exists():
                write_own(path, writer)
        return f"{SHARDS}/{writer}.jsonl"

    @contextlib.contextmanager
    def _one_line_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except (StoreError, UsageError):
            raise
        except (ImportError, ValueError) as problem:
            package = re.match(r"Install (\w+)", str(problem)) if isinstance(problem, ImportError) else None
            hint = f"; pip install {package[1]}" if package else ""
            raise UsageError(f"{self.url}: {printable(first_line(problem))}{hint}") from None
        except Exception as problem:  # each store raises other types
            local = f"; what was measured is in {self.root}" if "write" in action else ""
            hint = "; check credentials and permissions" if "redential" in repr(problem) else ""
            raise StoreError(f"{action} {self.url}: {printable(first_line(problem))}{hint}{local}") from None


def _host() -> str:
    """Identify this host, boot and container: process numbers have no meaning elsewhere."""
    parts = [os.uname().nodename]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
