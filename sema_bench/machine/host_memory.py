"""Read the memory of this machine and its control groups, and count the processes killed for lack of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil


def memory_limit_bytes() -> int:
    """Read the total memory of this machine, or the limit of a control group around this process if lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in _memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2, v1
            with contextlib.suppress(OSError, ValueError):
                total = min(total, int((folder / name).read_text()))
    return total


def _memory_groups() -> list[Path]:
    """List the folders of the memory control groups around this process, the innermost first."""
    root = Path("/sys/fs/cgroup")
    folders = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                top = root if not controllers else root / "memory"
                inner = top / path.lstrip("/")
                folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(top))]
    return folders or [root, root / "memory"]


def available_memory_bytes() -> int:
    """Estimate the memory that new work can take without swapping."""
    available = int(psutil.virtual_memory().available)
    for group in _memory_groups():
        with contextlib.suppress(OSError, ValueError):
            limit = int((group / "memory.max").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
            available = min(available, limit - used)
    return max(0, available)


def oom_kill_count() -> int:
    """Count the processes that the kernel killed for lack of memory in this control group, or on this machine."""
    for path in (*(group / "memory.events" for group in _memory_groups()), Path("/proc/vmstat")):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0
