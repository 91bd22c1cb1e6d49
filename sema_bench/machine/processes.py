"""Set up child processes: they end with the parent, start fast, and ``-W error`` of the user spares libraries."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sema_bench.errors import UsageError

_SET_PARENT_DEATH_SIGNAL = 1
#: Variable with the folder in which a worker creates a folder for each compiled cell.
COMPILER_CACHE = "SEMA_BENCH_COMPILER_CACHE"
_WARNINGS = "PYTHONWARNINGS"
#: Original values of variables that this process changed.
_inherited: dict[str, str] = {}


def die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; exit at once if ``parent`` is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Pause garbage collection during the import, then exempt all current objects from it until the process ends.

    Python would visit hundreds of thousands of objects while it imports them, and again when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def close_pipes(process: subprocess.Popen[Any]) -> None:
    """Close this side's ends of the pipes of a process that has ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def kill_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a session, with all that it started there, and close its pipes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    close_pipes(process)


def let_libraries_warn() -> None:
    """Exempt libraries from ``PYTHONWARNINGS=error`` and ``-W error``, which are meant for the user's code.

    A measurement must not fail because torch has deprecated a function that timm calls. Libraries are the standard
    library, ``site-packages`` and this project. Processes that libraries start, to compile or to load data, inherit
    no error option; those of ``child_environment`` do.
    """
    others = [option for option in sys.warnoptions if not _is_error(option)]
    if others == sys.warnoptions:
        return
    sys.warnoptions[:] = others
    if given := os.environ.get(_WARNINGS):
        _inherited[_WARNINGS] = given
        os.environ[_WARNINGS] = ",".join(option for option in given.split(",") if not _is_error(option))
    of_libraries = re.compile(rf"({'|'.join(map(re.escape, sorted(_libraries())))})(\.|\Z)")
    filters: Any = warnings.filters  # a list; its stub is a sequence
    for index, (action, message, category, module, line) in reversed(list(enumerate(filters))):
        if action == "error" and module is None:
            filters.insert(index, ("default", message, category, of_libraries, line))


def _is_error(option: str) -> bool:
    """Check whether an option of ``-W`` makes warnings of all modules errors; actions may be abbreviated."""
    action, *rest = (part.strip() for part in option.split(":"))
    return bool(action) and "error".startswith(action) and not any(rest[2:3])


def _libraries() -> set[str]:
    """List the top-level modules of the standard library, of ``site-packages`` and of this project."""
    folders = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    installed = {entry.name.partition(".")[0] for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    return {*sys.stdlib_module_names, *(name for name in installed if name.isidentifier()), "sema", "sema_bench"}


def count_of_processes(variable: str) -> int:
    """Read the number of processes in ``WORLD_SIZE`` or ``LOCAL_WORLD_SIZE``, 1 if unset; raise UsageError for text."""
    text = os.environ.get(variable, "1")
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise UsageError(f"{variable} is {text!r}; a launcher such as torchrun sets it to a number of processes")
    return int(text)


def child_environment(**changes: str) -> dict[str, str]:
    """Make the variables of a child that numbers GPUs as NVML does, and imports no modules from the working folder."""
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, **_inherited, "PYTHONSAFEPATH": "1", **changes}
