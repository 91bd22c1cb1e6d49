"""What NVML says of one GPU while a window lasts: power, energy, clocks, temperature, throttling, other processes.

Clocks and power fall within milliseconds of the last kernel, so a thread reads them while the window lasts. Every
query may fail by itself: cards lack counters, containers hide processes.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any

from sema_bench.machine.devices import nvml_handle

#: Seconds between two readings; a query takes well under a millisecond.
PERIOD_S = 0.05
#: Bits of NVML's clock event reasons that make a card slower than its clocks promise.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuWindow:
    """A card during one window; None where it does not tell.

    Attributes:
        energy_j: by the card's energy counter.
        power_w: mean of the readings.
        sm_clock_hz, memory_clock_hz: mean of the readings.
        temperature_c: highest reading.
        throttles: reasons for which its clocks were held down at some reading.
        other_processes: processes beside the worker that computed on it; one that only holds a context is none.
    """

    energy_j: float | None = None
    power_w: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_c: float | None = None
    throttles: frozenset[str] = frozenset()
    other_processes: int | None = None


class GpuWatch:
    """Watches ``cuda:<index>``.

    Attributes:
        absent: what the card does not tell → why.
    """

    def __init__(self, device: str) -> None:
        import pynvml

        self.absent: dict[str, str] = {}
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handle: Any = nvml_handle(device)
        except pynvml.NVMLError as problem:
            self._handle = None
            self.absent["GPU"] = f"NVML: {problem}"
        self._readings: list[dict[str, Any]] = []
        self._energy_at_start: float | None = None
        self._started_us = 0
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Open a window."""
        if self._handle is None:
            return
        self._readings = []
        self._over.clear()
        self._started_us = int(time.time() * 1e6)
        self._energy_at_start = self._energy()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self, worker: int) -> GpuWindow:
        """Close the window; ``worker`` is the process that computed in it."""
        if self._handle is None or self._thread is None:
            return GpuWindow()
        energy = self._energy()  # first: what follows is idle time
        self._over.set()
        self._thread.join()
        started = self._energy_at_start
        return GpuWindow(
            energy_j=energy - started if energy is not None and started is not None else None,
            power_w=_mean(
                self._values("power")[len(self._readings) // 2 :]
            ),  # some cards report a mean of the last second
            sm_clock_hz=_mean(self._values("SM clock")),
            memory_clock_hz=_mean(self._values("memory clock")),
            temperature_c=max(self._values("temperature"), default=None),
            throttles=frozenset(
                name for bits in self._values("throttle reasons") for bit, name in THROTTLES.items() if int(bits) & bit
            ),
            other_processes=self._others(worker),
        )

    def _watch(self) -> None:
        while True:
            self._readings.append(self._read())
            if self._over.wait(PERIOD_S):
                return

    def _read(self) -> dict[str, float | None]:
        nvml, handle = self._nvml, self._handle
        # The newer name of the same query; older bindings lack it.
        reasons = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None) or (
            nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        )
        return {
            "power": self._ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3),
            "SM clock": self._ask("SM clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6),
            "memory clock": self._ask(
                "memory clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM) * 1e6
            ),
            "temperature": self._ask(
                "temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "throttle reasons": self._ask("throttle reasons", lambda: reasons(handle)),
        }

    def _energy(self) -> float | None:
        return self._ask("energy counter", lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3)

    def _others(self, worker: int) -> int | None:
        """Count foreign processes at work; in a container NVML may name none, or name them by the host's numbers."""
        listed: Any = self._ask(
            "processes", lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle), default=None
        )
        if listed is None:
            return None
        pids = {process.pid for process in listed}
        if worker not in pids:
            self.absent["GPU processes"] = (
                "NVML does not list the worker (a container?), so others cannot be told apart"
            )
            return None
        if pids == {worker}:
            return 0
        try:
            used = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._started_us)
        except self._nvml.NVMLError as problem:  # also where nothing was at work
            self.absent["GPU processes at work"] = f"NVML: {problem}"
            return 0
        return len({sample.pid for sample in used if sample.smUtil > 0} - _relatives(worker))

    def _ask(self, what: str, query: Any, default: float | None = None) -> float | None:
        try:
            value: float = query()
            return value
        except self._nvml.NVMLError as problem:
            self.absent[f"GPU {what}"] = f"NVML: {problem}"
            return default

    def _values(self, name: str) -> list[float]:
        return [reading[name] for reading in self._readings if reading[name] is not None]


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _relatives(worker: int) -> set[int]:
    """Return the processes of this run: the worker and the driver's other children."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return {worker, *(child.pid for child in psutil.Process().children(recursive=True))}
    return {worker}
