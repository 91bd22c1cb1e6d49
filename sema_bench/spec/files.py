"""Check and hash files that people name. A pipe is never opened: that would block forever."""

from __future__ import annotations

import difflib
import hashlib
import os
from pathlib import Path

from sema_bench.errors import UsageError


def check_regular_file(path: Path, kind: str) -> None:
    """Raise UsageError, with ``kind`` in the message, for a folder, a pipe or a device; a missing file passes."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise UsageError(f"{kind} {str(path)!r} is not a file but {what}")


def similar_file(path: Path) -> str:
    """Suggest a file beside a missing ``path`` that has a similar name and the same ending; "" without one."""
    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix == path.suffix and other.is_file()]
    except (OSError, ValueError):  # ValueError: a null character in the path
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""


def sha256_of(path: Path) -> str:
    """Hash a file to 8 hex digits; raise OSError if it cannot be read, ValueError for a null character in its path."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:8]


def expand_user(path: str) -> str:
    """Replace ``~`` at the start of a path; one of an unknown user stays."""
    return os.path.expanduser(path)  # noqa: PTH111 - a Path raises for an unknown user, and normalises the rest


def name_text(name: str) -> str:
    r"""Return the name of a file as text that can be written anywhere: a byte that is not UTF-8 becomes ``\xff``."""
    return os.fsencode(name).decode(errors="backslashreplace")
