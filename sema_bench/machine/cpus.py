"""How many CPUs this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from sema_bench.errors import UsageError


def default_threads() -> int:
    """Return the number of CPUs that this process may use: affinity and cgroup quota both count."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_limit()
    return max(1, min(allowed, int(quota) if quota else allowed))


def check_threads(threads: Sequence[int], available: int | None = None) -> None:
    """Refuse more threads than CPUs.

    Args:
        threads: what is asked for.
        available: CPUs that a cell may use; None: those of this process.

    Raises:
        UsageError: one of ``threads`` is more than that.
    """
    available = available or default_threads()
    if max(threads, default=0) > available:
        raise UsageError(f"--threads: {max(threads)} asked for, and a cell may use {available} CPUs")


def cgroup_cpu_limit() -> float | None:
    """Return the CPU quota of this control group in cores, None where there is no limit."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # cgroup v1: −1 is no limit
        limit = int((group / "cpu/cpu.cfs_quota_us").read_text())
        return limit / int((group / "cpu/cpu.cfs_period_us").read_text()) if limit > 0 else None
    return None
