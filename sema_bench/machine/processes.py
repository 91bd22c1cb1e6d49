"""What a process of ours does first: tie its life to its parent's, and spare libraries the user's ``-W error``."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

from sema_bench.errors import UsageError

_SET_PARENT_DEATH_SIGNAL = 1
#: Variable that names, to a worker, the folder in which each compiled cell has one of its own.
COMPILER_CACHE = "SEMA_BENCH_COMPILER_CACHE"
_WARNINGS = "PYTHONWARNINGS"
#: Variables of this process as they were given, where they were changed.
_inherited: dict[str, str] = {}


def die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; end at once if ``parent`` is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def close_pipes(process: subprocess.Popen[Any]) -> None:
    """Close this side's ends of the pipes of a process that has ended."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def let_libraries_warn() -> None:
    """Keep warnings of libraries warnings where ``PYTHONWARNINGS`` or ``-W`` turns all of them into errors.

    That is meant for the user's own code: a measurement must not fail because torch has deprecated what timm calls. A
    library is what lies in the standard library, in ``site-packages`` or in this project; code of the user still fails.
    Processes that libraries start, to compile or to load data, inherit no errors; those of ``child_environment`` do.
    """
    kept = [option for option in sys.warnoptions if not _is_error(option)]
    if kept == sys.warnoptions:
        return
    sys.warnoptions[:] = kept
    if given := os.environ.get(_WARNINGS):
        _inherited[_WARNINGS] = given
        os.environ[_WARNINGS] = ",".join(option for option in given.split(",") if not _is_error(option))
    of_libraries = re.compile(rf"({'|'.join(map(re.escape, sorted(_libraries())))})(\.|\Z)")
    for place, (action, message, category, module, line) in reversed(list(enumerate(warnings.filters))):
        if action == "error" and module is None:
            warnings.filters.insert(place, ("default", message, category, of_libraries, line))  # type: ignore[attr-defined]


def _is_error(option: str) -> bool:
    """Tell whether an option of ``-W`` makes errors of all modules' warnings; actions may be cut short."""
    action, *rest = (part.strip() for part in option.split(":"))
    return bool(action) and "error".startswith(action) and not any(rest[2:3])


def _libraries() -> set[str]:
    """Return the top-level modules of the standard library, of ``site-packages`` and of this project."""
    folders = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    installed = {entry.name.partition(".")[0] for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    return {*sys.stdlib_module_names, *(name for name in installed if name.isidentifier()), "sema", "sema_bench"}


def count_of_processes(variable: str) -> int:
    """Return how many processes a launcher says that it has started, 1 without one.

    Args:
        variable: ``WORLD_SIZE``, or ``LOCAL_WORLD_SIZE`` for this machine alone.

    Raises:
        UsageError: the variable holds something else.
    """
    text = os.environ.get(variable, "1")
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise UsageError(f"{variable} is {text!r}; a launcher such as torchrun sets it to a number of processes")
    return int(text)


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child process.

    GPUs are numbered as NVML numbers them, and files that happen to lie in the working folder (``random.py``) are not
    imported in place of modules.
    """
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, **_inherited, "PYTHONSAFEPATH": "1", **changes}
