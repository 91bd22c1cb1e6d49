"""A window is the stretch of time in which one batch of samples was taken; here it is judged, and cells summed up.

A window is disturbed when something other than the cell itself bent its samples: the hypervisor gave the CPU to
others, the control group's quota or the card's limits held it back, other processes were at work on a full machine.
Disturbed samples are kept and marked: leaving them out would choose the results.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sema_bench.machine.cpu_telemetry import CpuCounters, CpuReading, energy_between
from sema_bench.machine.gpu_telemetry import GpuWatch, GpuWindow
from sema_bench.spec.record import Measurement

#: Shares of the machine's CPU time above which a window counts as disturbed.
STOLEN_SHARE = 0.02
OTHERS_SHARE = 0.05
#: A machine with less idle time than this is full: others and the cell are in each other's way.
IDLE_SHARE = 0.05
#: A window of fewer CPU seconds cannot be judged …
SHORTEST_CPU_S = 0.1
#: … nor can a share of fewer than two ticks: the kernel counts in hundredths of a second.
_TICKS_S = 0.015
#: A cell of which a larger share of the windows was disturbed is named in the tables.
DISTURBED_SHARE = 0.5

_STOLEN = "CPU time stolen by the hypervisor"
_CROWDED = "other processes on a full machine"
_GPU_SHARED = "other processes on the GPU"
_BY_OTHERS = frozenset({_STOLEN, _CROWDED, _GPU_SHARED})


@dataclass
class Window:
    """One window.

    Attributes:
        before, after: of the CPUs.
        gpu: of the card; None on a CPU.
        images: forward passes × batch in it, settling ones too.
        samples: timed forward passes in it.
    """

    before: CpuReading
    after: CpuReading
    gpu: GpuWindow | None = None
    images: int = 0
    samples: int = 0

    @property
    def seconds(self) -> float:
        return self.after.at_s - self.before.at_s

    @property
    def energy_j(self) -> float | None:
        """Joules of the card, or of the CPU packages where there is none; never a mix of both."""
        if self.gpu is None:
            return energy_between(self.before, self.after)
        if self.gpu.energy_j is not None:
            return self.gpu.energy_j
        return None if self.gpu.power_w is None else self.gpu.power_w * self.seconds

    def shares(self) -> dict[str, float]:
        """Return stolen, others' and idle CPU time as shares of the machine's; empty where the window is too short."""
        busy, idle, stolen, worker, _ = self._cpu_seconds()
        total = busy + idle + stolen
        if total < SHORTEST_CPU_S:
            return {}
        return {"stolen": stolen / total, "others": max(0.0, busy - worker) / total, "idle": idle / total}

    def disturbances(self) -> list[str]:
        """Return what disturbed this window, in words; empty for a quiet one."""
        found = []
        shares = self.shares()
        busy, _, stolen, worker, throttled = self._cpu_seconds()
        if shares.get("stolen", 0.0) > STOLEN_SHARE and stolen > _TICKS_S:
            found.append(_STOLEN)
        on_cpu = self.gpu is None
        crowded = shares.get("others", 0.0) > OTHERS_SHARE and busy - worker > _TICKS_S
        if on_cpu and crowded and shares["idle"] < IDLE_SHARE:
            found.append(_CROWDED)
        if throttled > 0:
            found.append("throttled by the CPU quota")
        if self.gpu is not None:
            found += [f"GPU throttled: {reason}" for reason in sorted(self.gpu.throttles)]
            if self.gpu.other_processes:
                found.append(_GPU_SHARED)
        return found

    def _cpu_seconds(self) -> tuple[float, ...]:
        """Busy, idle, stolen, the worker's and throttled seconds of the window."""
        early, late = self.before, self.after
        throttled = (late.throttled_s or 0.0) - (early.throttled_s or 0.0)
        pairs = ("busy_s", "idle_s", "stolen_s", "worker_s")
        return (*(max(0.0, getattr(late, name) - getattr(early, name)) for name in pairs), throttled)


class Telemetry:
    """Watches the machine while windows last; one for a run."""

    def __init__(self, device: str, *, counters: CpuCounters | None = None) -> None:
        self._cpu = counters or CpuCounters()
        self._gpu = GpuWatch(device) if device.startswith("cuda") else None

    @property
    def absent(self) -> dict[str, str]:
        """What this machine does not tell → why."""
        return {**self._cpu.absent, **(self._gpu.absent if self._gpu else {})}

    @contextmanager
    def window(self, worker: int) -> Iterator[Callable[[], Window]]:
        """Watch while the body runs; what it yields gives the window afterwards."""
        done: list[Window] = []
        before = self._cpu.read(worker)
        if self._gpu:
            self._gpu.start()
        try:
            yield lambda: done[0]
        finally:
            gpu = self._gpu.stop(worker) if self._gpu else None
            done.append(Window(before, self._cpu.read(worker), gpu))


def may_calm_down(windows: Sequence[Window]) -> bool:
    """Tell whether more than half of the windows were disturbed by others, who may go: worth sampling on."""
    return 2 * sum(any(reason in _BY_OTHERS for reason in window.disturbances()) for window in windows) > len(windows)


def summed_up(
    windows: Sequence[Window], absent: dict[str, str], *, energy: Sequence[Window] = ()
) -> tuple[list[Measurement], dict[str, Any]]:
    """Return the measurements that the windows of one cell give, and the facts beside them.

    Args:
        windows: of its samples.
        absent: what this machine does not tell → why.
        energy: windows to take power and energy from, where those of the samples are too short for that.
    """
    if not windows:
        return [], {"telemetry": {"absent": absent}}
    energy = energy or windows
    gpus = [window.gpu for window in windows if window.gpu is not None]
    known = [joules for window in energy if (joules := window.energy_j) is not None]
    seconds, images = sum(window.seconds for window in energy), sum(window.images for window in energy)
    complete = len(known) == len(energy) and seconds > 0 and images > 0
    shares = [shares for window in windows if (shares := window.shares())]
    values: dict[str, float | None] = {
        "power_w": sum(known) / seconds if complete else None,
        "energy_j_per_image": sum(known) / images if complete else None,
        "gpu_clock_hz": _mean(gpu.sm_clock_hz for gpu in gpus),
        "gpu_memory_clock_hz": _mean(gpu.memory_clock_hz for gpu in gpus),
        "gpu_temperature_c": max((t for gpu in gpus if (t := gpu.temperature_c) is not None), default=None),
        "cpu_clock_hz": _mean(window.after.clock_hz for window in windows),
        "load_average": _mean(window.after.load for window in windows),
        "cpu_stolen_share": _mean(each["stolen"] for each in shares),
        "cpu_others_share": _mean(each["others"] for each in shares),
        "disturbed_share": sum(bool(window.disturbances()) for window in windows) / len(windows),
    }
    reasons = Counter(reason for window in windows for reason in window.disturbances())
    facts: dict[str, Any] = {
        "seconds": sum(window.seconds for window in windows),
        "window_samples": [window.samples for window in windows],
        "disturbed_windows": [index for index, window in enumerate(windows) if window.disturbances()],
        "disturbances": dict(reasons.most_common()),
        "absent": absent,
    }
    return [Measurement(metric=key, value=value) for key, value in values.items() if value is not None], {
        "telemetry": facts
    }


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
