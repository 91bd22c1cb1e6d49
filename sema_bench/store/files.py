"""Write files that survive a crash: atomic writes, appended lines, locks; and name the cache folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from sema_bench.errors import StoreError


def cache_folder() -> Path:
    """Name the cache folder: ``$XDG_CACHE_HOME/sema-bench`` or ``~/.cache/sema-bench``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "sema-bench"


def utc_now() -> str:
    """Format the current time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write ``data`` to ``path``; a reader, or a crash, sees the old content or the new, never a part.

    Follow links, keep permissions, and write to a pipe or a device directly. Raise StoreError if writing fails; the
    old content is still there.
    """
    with _one_line(path):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            target.write_bytes(_encoded(data))
        else:
            _replace(target, data)


def write_own(path: Path, data: str | bytes) -> None:
    """Write a file of the results folder like ``atomic_write``, but replace links and refuse pipes and devices."""
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_symlink():
            raise StoreError(f"cannot write {path}: it is not a file; remove it")
        _replace(path, data)


def check_own_folder(folder: Path) -> None:
    """Raise StoreError if ``folder`` is a link: writes and deletions would reach outside the run."""
    if folder.is_symlink():
        raise StoreError(f"cannot write {folder}: symbolic links are not followed out of a run; remove it")


def _encoded(data: str | bytes) -> bytes:
    return data.encode(errors="backslashreplace") if isinstance(data, str) else data


def _replace(path: Path, data: str | bytes) -> None:
    """Replace ``path`` by a new file, with the permissions of the old one."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(_encoded(data))
            file.flush()
            os.fsync(file.fileno())
        if path.is_file() and not path.is_symlink():
            temporary.chmod(path.stat().st_mode & 0o7777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line about ``path``."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"cannot write {path}: a part of that path is a file, not a folder") from None
    except RuntimeError:  # Python 3.10 to 3.12 raise it for a loop of links
        raise StoreError(f"cannot write {path}: {os.strerror(errno.ELOOP)}") from None
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None


def append_line(path: Path, line: str, *, sync: bool) -> None:
    """Append a line to a file; on OSError the file is unchanged. ``sync`` waits for the disk."""
    content = (line + "\n").encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def lock_file(path: Path, *, note: str, mode: int, on_held: Callable[[str], None]) -> int:
    """Lock ``path`` until the returned descriptor is closed, or until this process dies, however it dies.

    Args:
        path: created with the permissions ``mode`` if it is missing; a link raises OSError.
        note: who holds the lock, for other processes to read.
        on_held: called with the note of another holder; it raises to give up, or returns to wait.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"cannot write to {path}: it is not a file; remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            on_held(os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{note}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
