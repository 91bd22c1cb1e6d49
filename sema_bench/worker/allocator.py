"""Set the C allocator of a worker, and read its resident set from the kernel.

glibc returns every large buffer to the kernel when it is freed and pays for its pages again on the next
forward pass. At 896 × 896 that alone made a model 1.55 times slower, and an exponent of 0.95 read 1.10.
``retain`` keeps the memory; it must be set before anything large is allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import re
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def set_allocator(setting: str) -> None:
    """Apply ``retain`` or ``default`` to this process; raise RuntimeError if the C library is not glibc.

    ``retain`` serves every request from the heap (no mmap, whose threshold glibc caps at 32 MiB) and never trims it.
    """
    if setting == "default":
        return
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError("allocator 'retain' needs glibc; use --allocator default")
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        raise RuntimeError("glibc refused the allocator setting 'retain'; use --allocator default")


def trim_heap() -> None:
    """Return free heap memory to the kernel, so that the resident set is the memory in use."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_rss() -> bool:
    """Reset the peak resident set to the current one; return False if the kernel refuses."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def rss_bytes(*, peak: bool = False) -> int | None:
    """Read the resident set of this process, or its peak since the last reset; None if the kernel hides it."""
    field = "VmHWM" if peak else "VmRSS"
    with contextlib.suppress(OSError):
        kib = re.search(rf"^{field}:\s*(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
        return None if kib is None else int(kib[1]) * 1024
    return None
