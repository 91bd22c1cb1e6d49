"""Files that people name: looked at before they are opened, since opening a pipe waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

from sema_bench.errors import UsageError


def check_regular_file(path: Path, kind: str) -> None:
    """Refuse what is there and is not a file: a folder, a pipe, a device, a socket. What is not there passes.

    Args:
        path: as the user wrote it.
        kind: what the file should be, for the message ("suite", "checkpoint").

    Raises:
        UsageError: see there.
        OSError: it cannot be looked at.
    """
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe, a socket or a device"
        raise UsageError(f"{kind} {str(path)!r} is not a file but {what}")


def name_text(name: str) -> str:
    r"""Return the name of a file as text that can be written anywhere: a byte that is not UTF-8 becomes ``\xff``."""
    return os.fsencode(name).decode(errors="backslashreplace")
