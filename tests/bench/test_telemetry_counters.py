"""The kernel's counters and NVML's: read where they are shown, and what is missing is named with its reason."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sema_bench.machine import devices, gpu_telemetry
from sema_bench.machine.cpu_telemetry import CpuCounters
from sema_bench.machine.disturbance import Telemetry, summed_up
from sema_bench.machine.gpu_telemetry import GpuWatch, GpuWindow


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_all_counters_are_read_where_the_kernel_shows_them(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n",
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "999000000\n",
            "sys/class/powercap/intel-rapl:1/name": "psys\n",
            "sys/class/powercap/intel-rapl:1/energy_uj": "999000000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2000000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "4000000\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_throttled 2\nthrottled_usec 1500000\n",
        },
    )
    counters = CpuCounters(root)
    reading = counters.read(os.getpid())
    assert reading.energy_j == ((5.0, 262143.32885),), "neither parts of a package nor the platform around it"
    assert reading.clock_hz == 3e9
    assert reading.throttled_s == 1.5
    assert reading.worker_s > 0
    assert counters.absent == {}


def test_the_first_generation_of_control_groups_counts_in_nanoseconds(tmp_path: Path) -> None:
    write(tmp_path, {"sys/fs/cgroup/cpu/cpu.stat": "nr_periods 1\nnr_throttled 1\nthrottled_time 2000000000\n"})
    assert CpuCounters(tmp_path).read(os.getpid()).throttled_s == 2.0


def test_what_is_not_there_is_named_with_its_reason(tmp_path: Path) -> None:
    counters = CpuCounters(tmp_path)
    reading = counters.read(os.getpid())
    assert (reading.energy_j, reading.clock_hz, reading.throttled_s) == (None, None, None)
    assert set(counters.absent) == {"CPU energy", "CPU clock", "CPU quota"}


def test_energy_that_only_root_may_read_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "sys/class/powercap/intel-rapl:0"
    write(tmp_path, {f"{folder}/name": "package-0\n", f"{folder}/energy_uj": "5\n"})
    read = Path.read_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    counters = CpuCounters(tmp_path)
    assert counters.absent["CPU energy"].endswith("energy_uj: Permission denied")
    assert counters.read(os.getpid()).energy_j is None


def test_a_worker_that_is_gone_leaves_a_reading() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert CpuCounters().read(child.pid).worker_s == 0.0


# --- NVML -----------------------------------------------------------------------------------------------------------


class FakeNvml:
    """A card that takes 300 W; ``lacks`` names queries that it, or its driver, does not know."""

    NVMLError = RuntimeError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(
        self,
        *,
        lacks: tuple[str, ...] = (),
        reasons: int = 0x1,
        processes: tuple[int, ...] = (),
        at_work: dict[int, int] | None = None,
    ) -> None:
        self._lacks, self._reasons, self._processes, self._at_work = lacks, reasons, processes, at_work or {}
        self._millijoules = 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def query(*arguments: Any) -> Any:
            if name in self._lacks:
                raise self.NVMLError("Not Supported")
            return self._answer(name, arguments)

        return query

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "nvmlDeviceGetTotalEnergyConsumption":
            self._millijoules += 75_000
            return self._millijoules
        return {
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetPowerUsage": 300_000,
            "nvmlDeviceGetClockInfo": 1980 if arguments[-1:] == (1,) else 2619,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetCurrentClocksEventReasons": self._reasons,
            "nvmlDeviceGetComputeRunningProcesses": [SimpleNamespace(pid=pid) for pid in self._processes],
            "nvmlDeviceGetProcessUtilization": [
                SimpleNamespace(pid=pid, smUtil=use) for pid, use in self._at_work.items()
            ],
        }.get(name)


def watched(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> tuple[GpuWindow, dict[str, str]]:
    for module in (devices, gpu_telemetry):
        monkeypatch.setattr(module, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    watch = GpuWatch("cuda:0")
    watch.start()
    return watch.stop(os.getpid()), watch.absent


def test_a_card_is_read_while_the_window_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    found, absent = watched(
        monkeypatch,
        FakeNvml(reasons=0x1 | 0x4 | 0x40, processes=(os.getpid(), 1, 2), at_work={1: 30, 2: 0, os.getpid(): 70}),
    )
    assert found == GpuWindow(
        energy_j=75.0,
        power_w=300.0,
        sm_clock_hz=1.98e9,
        memory_clock_hz=2.619e9,
        temperature_c=61,
        throttles=frozenset({"power cap", "thermal slowdown (hardware)"}),
        other_processes=1,
    )
    assert absent == {}


def test_a_driver_that_lacks_a_counter_leaves_it_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature", "nvmlDeviceGetComputeRunningProcesses")
    found, absent = watched(monkeypatch, FakeNvml(lacks=lacks))
    assert (found.energy_j, found.temperature_c, found.other_processes) == (None, None, None)
    assert found.power_w == 300.0
    assert set(absent) == {"GPU energy counter", "GPU temperature", "GPU processes"}


def test_a_process_that_only_holds_a_context_is_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = FakeNvml(processes=(os.getpid(), 1), at_work={1: 0, os.getpid(): 90})
    assert watched(monkeypatch, idle)[0].other_processes == 0
    silent = FakeNvml(processes=(os.getpid(), 1), lacks=("nvmlDeviceGetProcessUtilization",))
    found, absent = watched(monkeypatch, silent)
    assert found.other_processes == 0
    assert set(absent) == {"GPU processes at work"}


def test_a_container_that_hides_processes_is_not_taken_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    found, absent = watched(monkeypatch, FakeNvml(processes=(123456,)))
    assert found.other_processes is None
    assert "container" in absent["GPU processes"]


def test_no_nvml_at_all_leaves_everything_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    found, absent = watched(monkeypatch, FakeNvml(lacks=("nvmlInit",)))
    assert found == GpuWindow()
    assert absent == {"GPU": "NVML: Not Supported"}


def test_a_cuda_cell_gets_the_cards_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (devices, gpu_telemetry):
        monkeypatch.setattr(module, "pynvml", FakeNvml(processes=(os.getpid(),)))
    telemetry = Telemetry("cuda:0")
    with telemetry.window(os.getpid()) as finished:
        sum(range(1000))
    found = {m.metric: m.value for m in summed_up([dataclasses.replace(finished(), images=15)], telemetry.absent)[0]}
    assert found["energy_j_per_image"] == 5.0
    assert found["gpu_clock_hz"] == 1.98e9
    assert found["gpu_memory_clock_hz"] == 2.619e9
    assert found["gpu_temperature_c"] == 61
