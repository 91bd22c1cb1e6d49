"""Count the CPUs that this process may use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from sema_bench.errors import UsageError


def default_threads() -> int:
    """Count the CPUs that this process may use, by affinity and cgroup quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cpu_limit()
    return max(1, min(allowed, int(quota) if quota else allowed))


def check_threads(threads: Sequence[int], available: int | None = None) -> None:
    """Raise UsageError if one of ``threads`` exceeds ``available`` CPUs (None: those of this process)."""
    available = available or default_threads()
    if max(threads, default=0) > available:
        raise UsageError(f"--threads: {max(threads)} asked for, and a cell may use {available} CPUs; lower it")


def cgroup_cpu_limit() -> float | None:
    """Read the CPU quota of this control group in cores; None without a limit."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):  # cgroup v1: −1 is no limit
        limit = int((group / "cpu/cpu.cfs_quota_us").read_text())
        return limit / int((group / "cpu/cpu.cfs_period_us").read_text()) if limit > 0 else None
    return None
