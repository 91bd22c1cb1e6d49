"""Read one GPU through NVML during a window: power, energy, clocks, temperature, throttling, other processes.

Clocks and power fall within milliseconds of the last kernel, so a thread reads them during the window. Any query may
fail: cards lack counters, and containers hide processes.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from sema_bench.machine.devices import is_slice, nvml_handle

#: Seconds between two readings; a query takes well under a millisecond.
PERIOD_S = 0.05
#: Bit of NVML's clock event reasons that is set while the power limit holds the clocks down, as it does in large cells.
POWER_CAP = 0x4
#: Bits that mean trouble: the card is slower than at its power limit.
THROTTLES = {
    0x8: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}


@dataclass(frozen=True)
class GpuWindow:
    """A card during one window: the mean power and clocks, and the highest temperature; None if it reports none.

    Attributes:
        energy_j: by the card's energy counter.
        power_capped_share: share of the readings at which the power limit held the clocks down.
        throttles: other reasons for lower clocks, at any reading.
        other_processes: processes beside the worker that computed or drew on it; one that only holds a context does not
            count.
    """

    energy_j: float | None = None
    power_w: float | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    temperature_c: float | None = None
    power_capped_share: float | None = None
    throttles: frozenset[str] = frozenset()
    other_processes: int | None = None


class GpuWatch:
    """Watches ``cuda:<index>``; ``absent`` maps what the card does not report to the reason."""

    def __init__(self, device: str) -> None:
        self.absent: dict[str, str] = {}
        try:
            pynvml.nvmlInit()
            self._handle: Any = nvml_handle(device)
        except pynvml.NVMLError as problem:
            self._handle = None
            self.absent["GPU"] = f"NVML: {problem}"
        if self._handle and is_slice(self._ask("UUID", lambda: pynvml.nvmlDeviceGetUUID(self._handle))):
            self._handle = None
            self.absent["GPU"] = "a MIG slice: power, energy, clocks and processes are those of the whole card"
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
        """Close the window in which the process ``worker`` computed."""
        if self._handle is None or self._thread is None:
            return GpuWindow()
        energy, started = self._energy(), self._energy_at_start  # before idle time adds to it
        self._over.set()
        self._thread.join()
        reasons = [int(bits) for bits in self._values("throttle reasons")]
        return GpuWindow(
            energy_j=energy - started if energy is not None and started is not None else None,
            # some cards report a mean of the last second
            power_w=mean_of_known(self._values("power")[len(self._readings) // 2 :]),
            sm_clock_hz=mean_of_known(self._values("SM clock")),
            memory_clock_hz=mean_of_known(self._values("memory clock")),
            temperature_c=max(self._values("temperature"), default=None),
            power_capped_share=mean_of_known(float(bool(bits & POWER_CAP)) for bits in reasons),
            throttles=frozenset(name for bit, name in THROTTLES.items() if any(bits & bit for bits in reasons)),
            other_processes=self._others(worker),
        )

    def _watch(self) -> None:
        handle = self._handle
        queries: dict[str, Callable[[], float]] = {
            "power": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "SM clock": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,
            "memory clock": lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
            "temperature": lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "throttle reasons": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        }
        while True:
            self._readings.append({name: self._ask(name, query) for name, query in queries.items()})
            if self._over.wait(PERIOD_S):
                return

    def _energy(self) -> float | None:
        query = pynvml.nvmlDeviceGetTotalEnergyConsumption
        joules: float | None = self._ask("energy counter", lambda: query(self._handle) / 1e3)
        return joules

    def _others(self, worker: int) -> int | None:
        """Count other processes at work; None if unknown. A container may hide them, or list the host's numbers."""
        handle = self._handle
        listed = self._ask(
            "processes",
            lambda: [
                *pynvml.nvmlDeviceGetComputeRunningProcesses(handle),
                *pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle),
            ],
        )
        if listed is None:
            return None
        pids = {process.pid for process in listed}
        if worker not in pids:
            self.absent["GPU processes"] = "NVML does not list the worker (in a container?), so others are unknown"
            return None
        if pids == {worker}:
            return 0
        # NVML samples once or a few times a second, and a window is shorter, so start a second before it.
        since_us = self._started_us - 1_000_000
        used = self._ask("processes at work", lambda: pynvml.nvmlDeviceGetProcessUtilization(handle, since_us))
        if not used:
            self.absent.setdefault("GPU processes at work", "NVML has no samples of this window")
            return None
        ours = {worker}
        with contextlib.suppress(psutil.Error):
            ours |= {child.pid for child in psutil.Process().children(recursive=True)}
        return len({sample.pid for sample in used if sample.smUtil > 0} - ours)

    def _ask(self, name: str, query: Callable[[], Any]) -> Any:
        try:
            return query()
        except pynvml.NVMLError as problem:
            self.absent[f"GPU {name}"] = f"NVML: {problem}"
            return None

    def _values(self, name: str) -> list[float]:
        return [reading[name] for reading in self._readings if reading[name] is not None]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Average the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
