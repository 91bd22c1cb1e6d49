"""Files that survive a crash: atomic writes, appended lines, and the folders they lie in."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sema_bench.errors import StoreError


def cache_folder() -> Path:
    """Return the folder of what can be measured again: ``$XDG_CACHE_HOME/sema-bench`` or ``~/.cache/sema-bench``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "sema-bench"


def utc_now() -> str:
    """Return the current time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write ``data`` to ``path`` so that a reader, or a crash, sees the old content or the new, never a part.

    Links are followed, permissions stay what they are, and what is no file (a pipe, a device) is written to as it is.

    Raises:
        StoreError: the disk is full or the folder is not writable; the old content is still there.
    """
    with _one_line(path):
        target = path.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            target.write_bytes(_encoded(data))
        else:
            _replace(target, data)


def write_own(path: Path, data: str | bytes) -> None:
    """Write a file of the results folder like ``atomic_write``; a link in its place is replaced and not followed.

    Raises:
        StoreError: as there; or a pipe, a device or a folder is in the way.
    """
    with _one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_symlink():
            raise StoreError(f"cannot write {path}: it is not a file; remove it")
        _replace(path, data)


def check_own_folder(folder: Path) -> None:
    """Refuse a folder of a run that is a link: what is written or removed in it would lie outside of the run.

    Raises:
        StoreError: see there.
    """
    if folder.is_symlink():
        raise StoreError(f"cannot write {folder}: symbolic links are not followed out of a run; remove it")


def _encoded(data: str | bytes) -> bytes:
    return data.encode(errors="backslashreplace") if isinstance(data, str) else data


def _replace(path: Path, data: str | bytes) -> None:
    """Put a new file in place of what is called ``path``; a file keeps its permissions."""
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
    """Say in one line why ``path`` cannot be written."""
    try:
        yield
    except (FileExistsError, NotADirectoryError):
        raise StoreError(f"cannot write {path}: a part of that path is a file, not a folder") from None
    except RuntimeError:  # what Python 3.10 to 3.12 raise
        raise StoreError(f"cannot write {path}: {os.strerror(errno.ELOOP)}") from None
    except OSError as problem:
        raise StoreError(f"cannot write {path}: {problem.strerror or problem}") from None


def append_line(path: Path, line: str, *, sync: bool) -> None:
    """Add a line to a file, whole or not at all.

    Args:
        path: made if it is not there.
        line: without its end.
        sync: return when it is on the disk.

    Raises:
        OSError: it could not be written; the file is what it was.
    """
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
