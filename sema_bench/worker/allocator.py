"""The C allocator of a worker, and what the kernel says of its memory.

glibc returns every large buffer to the kernel when it is freed and pays for its pages again on the next
forward pass. At 896 × 896 that alone made a model 1.55 times slower, and an exponent of 0.95 read 1.10.
``retain`` keeps the memory; it must be set before anything large is allocated.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from pathlib import Path

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1


def set_allocator(setting: str) -> None:
    """Apply an allocator setting (``retain`` or ``default``) to this process.

    ``retain`` serves every request from the heap (no mmap, whose threshold glibc caps at 32 MiB) and never trims it.

    Raises:
        RuntimeError: the C library is not glibc, which alone has these settings.
    """
    if setting == "default":
        return
    if platform.libc_ver()[0] != "glibc":
        raise RuntimeError("allocator 'retain' needs glibc; use --allocator default")
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)):
        raise RuntimeError("glibc refused the allocator setting 'retain'; use --allocator default")


def trim_heap() -> None:
    """Hand free heap memory back to the kernel, so that the resident set is what is in use."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_rss() -> bool:
    """Start the kernel's peak resident set afresh at the current one; returns whether the kernel allowed it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def rss_bytes(*, peak: bool = False) -> int | None:
    """Return the resident set of this process, or its peak since the last reset; None where the kernel does not say."""
    field = "VmHWM:" if peak else "VmRSS:"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None
