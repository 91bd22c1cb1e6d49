"""Judge the windows in which samples were taken, and summarise those of a cell.

A window is the time that one batch of samples took. It is disturbed if something other than the cell slowed it down:
the hypervisor gave the CPU to others, a quota or the card's limits throttled it, or other processes filled the machine.
Disturbed samples are marked but kept: dropping them would bias the results.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sema_bench.machine.cpu_telemetry import CpuCounters, CpuReading, energy_between
from sema_bench.machine.gpu_telemetry import GpuWatch, GpuWindow, mean_of_known
from sema_bench.spec.record import Measurement, measurements_of

#: Shares of the machine's CPU time above which a window counts as disturbed.
STOLEN_SHARE = 0.02
OTHERS_SHARE = 0.05
#: A machine with less idle time than this is full: other processes slow the cell.
IDLE_SHARE = 0.05
#: A window with fewer CPU seconds cannot be judged, nor can a share below two of the kernel's 10 ms ticks.
SHORTEST_CPU_S, _TICKS_S = 0.1, 0.015
#: Tables name a cell if a larger share of its windows was disturbed.
DISTURBED_SHARE = 0.5

_STOLEN = "CPU time stolen by the hypervisor"
_CROWDED = "other processes on a full machine"
_GPU_SHARED = "other processes on the GPU"
_BY_OTHERS = frozenset({_STOLEN, _CROWDED, _GPU_SHARED})


@dataclass
class Window:
    """One window: ``gpu`` on a card, ``samples`` timed passes, and all ``images``, settling passes included."""

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
        """Joules of the card, or of the CPU packages without a card."""
        if self.gpu is None:
            return energy_between(self.before, self.after)
        if self.gpu.energy_j is not None:
            return self.gpu.energy_j
        return None if self.gpu.power_w is None else self.gpu.power_w * self.seconds

    def shares(self) -> dict[str, float]:
        """Compute the machine's shares of stolen, others' and idle CPU time; empty for a short window."""
        busy, idle, stolen = map(self._spent_s, ("busy", "idle", "stolen"))
        total = busy + idle + stolen
        if total < SHORTEST_CPU_S:
            return {}
        others = max(0.0, busy - self._spent_s("worker"))
        return {"stolen": stolen / total, "others": others / total, "idle": idle / total}

    def disturbances(self) -> list[str]:
        """Name each disturbance of this window."""
        reasons = []
        shares = self.shares()
        if shares and shares["stolen"] > STOLEN_SHARE and self._spent_s("stolen") > _TICKS_S:
            reasons.append(_STOLEN)
        crowded = shares and shares["idle"] < IDLE_SHARE and shares["others"] > OTHERS_SHARE
        if self.gpu is None and crowded and self._spent_s("busy") - self._spent_s("worker") > _TICKS_S:
            reasons.append(_CROWDED)
        if (self.after.throttled_s or 0.0) > (self.before.throttled_s or 0.0):
            reasons.append("throttled by the CPU quota")
        if self.gpu is not None:
            reasons += [f"GPU throttled: {reason}" for reason in sorted(self.gpu.throttles)]
            if self.gpu.other_processes:
                reasons.append(_GPU_SHARED)
        return reasons

    def _spent_s(self, kind: str) -> float:
        """Compute the CPU seconds of one kind in the window."""
        return max(0.0, float(getattr(self.after, f"{kind}_s") - getattr(self.before, f"{kind}_s")))


class Telemetry:
    """Watches the machine of a run during windows."""

    def __init__(self, device: str) -> None:
        self._cpu = CpuCounters()
        self._gpu = GpuWatch(device) if device.startswith("cuda") else None

    @property
    def absent(self) -> dict[str, str]:
        """Map each counter that this machine lacks to the reason."""
        return {**self._cpu.absent, **(self._gpu.absent if self._gpu else {})}

    @contextmanager
    def window(self, worker: int) -> Iterator[Callable[[], Window]]:
        """Watch while the body runs; afterwards the yielded function returns the window."""
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
    """Check whether other processes disturbed more than half of the windows: more sampling may help."""
    return 2 * sum(any(reason in _BY_OTHERS for reason in window.disturbances()) for window in windows) > len(windows)


def summed_up(
    windows: Sequence[Window], absent: dict[str, str], *, energy: Sequence[Window] = ()
) -> tuple[tuple[Measurement, ...], dict[str, Any]]:
    """Summarise the windows of a cell's samples as measurements, and as details of its record.

    Power and energy come from the windows ``energy`` if those of the samples are too short.
    """
    if not windows:
        return (), {"telemetry": {"absent": absent}}
    energy = energy or windows
    disturbances = [window.disturbances() for window in windows]
    gpus = [window.gpu for window in windows if window.gpu is not None]
    known = [joules for window in energy if (joules := window.energy_j) is not None]
    seconds, images = sum(window.seconds for window in energy), sum(window.images for window in energy)
    complete = len(known) == len(energy) and seconds > 0 and images > 0
    shares = [shares for window in windows if (shares := window.shares())]
    values: dict[str, float | None] = {
        "power_w": sum(known) / seconds if complete else None,
        "energy_j_per_image": sum(known) / images if complete else None,
        "gpu_clock_hz": mean_of_known(gpu.sm_clock_hz for gpu in gpus),
        "gpu_memory_clock_hz": mean_of_known(gpu.memory_clock_hz for gpu in gpus),
        "power_capped_share": mean_of_known(gpu.power_capped_share for gpu in gpus),
        "gpu_temperature_c": max((t for gpu in gpus if (t := gpu.temperature_c) is not None), default=None),
        "cpu_clock_hz": mean_of_known(window.after.clock_hz for window in windows),
        "load_average": mean_of_known(window.after.load for window in windows),
        "cpu_stolen_share": mean_of_known(each["stolen"] for each in shares),
        "cpu_others_share": mean_of_known(each["others"] for each in shares),
        "disturbed_share": sum(map(bool, disturbances)) / len(windows),
    }
    facts: dict[str, Any] = {
        "seconds": sum(window.seconds for window in windows),
        "window_samples": [window.samples for window in windows],
        "disturbed_windows": [index for index, reasons in enumerate(disturbances) if reasons],
        "disturbances": dict(Counter(itertools.chain(*disturbances)).most_common()),
        "absent": absent,
    }
    return measurements_of(values), {"telemetry": facts}
