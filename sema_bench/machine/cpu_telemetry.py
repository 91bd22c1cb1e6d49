"""Read the kernel's counters of the CPUs before and after a window: busy and stolen time, throttling, clock, energy.

A counter that this machine or container hides is absent, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_BUSY = ("user", "nice", "system", "irq", "softirq")


@dataclass(frozen=True)
class CpuReading:
    """Counters at one moment; None if unknown. Times are CPU seconds over all CPUs since boot.

    Attributes:
        at_s: wall clock (monotonic).
        busy_s, idle_s, stolen_s: of the machine; the hypervisor gave the stolen time to others.
        worker_s: of the worker process.
        throttled_s: how long the quota stopped the control group.
        energy_j: of each CPU package since boot, with the value at which its counter wraps.
        clock_hz: mean over the CPUs.
        load: number of runnable processes, mean of the last minute.
    """

    at_s: float
    busy_s: float
    idle_s: float
    stolen_s: float
    worker_s: float
    throttled_s: float | None
    energy_j: tuple[tuple[float, float], ...] | None
    clock_hz: float | None
    load: float


class CpuCounters:
    """Reads the counters below ``root``; ``absent`` maps each missing one to the reason."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.absent: dict[str, str] = {}
        self._packages = self._find_packages(root / "sys/class/powercap")
        clocks = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._clocks = clocks if clocks and _number(clocks[0]) is not None else []
        if not self._clocks:
            self.absent["CPU clock"] = "no cpufreq driver (usual in virtual machines)"
        groups = (root / "sys/fs/cgroup/cpu.stat", root / "sys/fs/cgroup/cpu/cpu.stat")
        self._group = next((path for path in groups if _throttled_s(path) is not None), None)
        if self._group is None:
            self.absent["CPU quota"] = "the control group counts no throttling"

    def read(self, worker: int) -> CpuReading:
        """Read the counters now, and separately the CPU time of the process ``worker``."""
        times = psutil.cpu_times()
        own = 0.0
        with contextlib.suppress(psutil.Error):
            own = sum(psutil.Process(worker).cpu_times()[:2])  # user and system
        clocks = [hertz for path in self._clocks if (hertz := _number(path)) is not None]
        energy = [(joules / 1e6, span) for path, span in self._packages if (joules := _number(path)) is not None]
        return CpuReading(
            at_s=time.monotonic(),
            busy_s=sum(getattr(times, name, 0.0) for name in _BUSY),
            idle_s=times.idle + getattr(times, "iowait", 0.0),
            stolen_s=getattr(times, "steal", 0.0),
            worker_s=own,
            throttled_s=_throttled_s(self._group) if self._group else None,
            energy_j=tuple(energy) if energy and len(energy) == len(self._packages) else None,
            clock_hz=1e3 * sum(clocks) / len(clocks) if clocks else None,
            load=os.getloadavg()[0],
        )

    def _find_packages(self, folder: Path) -> list[tuple[Path, float]]:
        """Find the energy counter of each package and the value in joules at which it wraps."""
        packages = []
        for zone in sorted(folder.glob("*-rapl:[0-9]*")):
            if not _text(zone / "name").startswith("package"):  # parts of packages, and the platform around them
                continue
            counter = zone / "energy_uj"
            try:
                counter.read_text()
            except OSError as problem:
                self.absent["CPU energy"] = f"{counter}: {problem.strerror}"
                return []
            packages.append((counter, (_number(zone / "max_energy_range_uj") or 2**32) / 1e6))
        if not packages:
            self.absent["CPU energy"] = "no RAPL (usual in virtual machines)"
        return packages


def energy_between(before: CpuReading, after: CpuReading) -> float | None:
    """Compute the joules that all packages used between two readings; each counter may wrap once."""
    if before.energy_j is None or after.energy_j is None:
        return None
    pairs = zip(before.energy_j, after.energy_j, strict=True)
    return sum((late - early) % span if late < early else late - early for (early, span), (late, _) in pairs)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _throttled_s(path: Path) -> float | None:
    """Read how long the quota stopped the control group; cgroup v2 counts µs, v1 ns."""
    counters = dict(line.split(maxsplit=1) for line in _text(path).splitlines() if " " in line)
    with contextlib.suppress(ValueError, KeyError):
        if "throttled_usec" in counters:
            return int(counters["throttled_usec"]) / 1e6
        return int(counters["throttled_time"]) / 1e9
    return None
