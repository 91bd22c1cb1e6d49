"""What a child process of ours does first: tie its life to its parent's."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
#: Variable that names, to a worker, the folder in which each compiled cell has one of its own.
COMPILER_CACHE = "SEMA_BENCH_COMPILER_CACHE"


def die_with_parent(parent: int) -> None:
    """Ask the kernel (Linux) to kill this process when its parent dies; end at once if ``parent`` is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def child_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a child process.

    GPUs are numbered as NVML numbers them, and files that happen to lie in the working folder (``random.py``) are not
    imported in place of modules.
    """
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", **os.environ, "PYTHONSAFEPATH": "1", **changes}
