"""Test the kernel's and NVML's counters: read where available; missing ones are named with their reason."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pynvml
import pytest
from fake_nvml import FakeCard, FakeNvml

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


ME = os.getpid()


def watched(
    monkeypatch: pytest.MonkeyPatch, card: FakeCard, driver: str | None = "570.1"
) -> tuple[GpuWindow, dict[str, str]]:
    FakeNvml(card, driver=driver).install(monkeypatch, devices, gpu_telemetry)
    watch = GpuWatch("cuda:0")
    watch.start()
    return watch.stop(ME), watch.absent


def lacks(*queries: str) -> dict[str, int]:
    return dict.fromkeys(queries, pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_a_card_is_read_while_the_window_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard(reasons=0x1 | 0x4 | 0x40, processes=(ME, 1, 2), at_work={1: 30, 2: 0, ME: 70})
    window, absent = watched(monkeypatch, card)
    assert window == GpuWindow(
        energy_j=75.0,
        power_w=300.0,
        sm_clock_hz=1.98e9,
        memory_clock_hz=2.619e9,
        temperature_c=61,
        power_capped_share=1.0,
        throttles=frozenset({"thermal slowdown (hardware)"}),
        other_processes=1,
    )
    assert absent == {}


def test_a_driver_that_lacks_a_counter_leaves_it_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = lacks("TotalEnergyConsumption", "Temperature", "ComputeRunningProcesses", "CurrentClocksEventReasons")
    window, absent = watched(monkeypatch, FakeCard(fails=missing))
    assert (window.energy_j, window.temperature_c, window.power_capped_share) == (None, None, None)
    assert window.other_processes is None
    assert window.power_w == 300.0
    assert set(absent) == {"GPU energy counter", "GPU temperature", "GPU processes", "GPU throttle reasons"}


def test_a_process_that_only_holds_a_context_is_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, FakeCard(processes=(ME, 1), at_work={1: 0, ME: 90}))[0].other_processes == 0


def test_neighbours_are_unknown_where_nvml_has_no_samples_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML takes samples once or a few times a second, and answers NotFound without one."""
    window, absent = watched(monkeypatch, FakeCard(processes=(ME, 1)))
    assert window.other_processes is None
    assert absent == {"GPU processes at work": "NVML: Not Found"}


def test_samples_are_asked_for_since_a_second_before_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(FakeCard(processes=(ME, 1), at_work={1: 5, ME: 90})).install(monkeypatch, devices, gpu_telemetry)
    watch, before_us = GpuWatch("cuda:0"), time.time() * 1e6
    watch.start()
    watch.stop(ME)
    (since_us,) = [argument for query, argument in nvml.asked if query == "ProcessUtilization"]
    assert before_us - 1_000_001 <= since_us <= time.time() * 1e6 - 1_000_000


def test_a_desktop_that_draws_is_company(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = FakeCard(processes=(ME,), graphics=(7,), at_work={7: 12, ME: 80})
    assert watched(monkeypatch, busy)[0].other_processes == 1
    hidden = FakeCard(processes=(ME,), fails=lacks("GraphicsRunningProcesses"))
    assert watched(monkeypatch, hidden)[0].other_processes is None


def test_a_container_that_hides_processes_is_not_taken_for_company(monkeypatch: pytest.MonkeyPatch) -> None:
    window, absent = watched(monkeypatch, FakeCard(processes=(123456,)))
    assert window.other_processes is None
    assert "container" in absent["GPU processes"]


def test_no_nvml_at_all_leaves_everything_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    window, absent = watched(monkeypatch, FakeCard(), driver=None)
    assert window == GpuWindow()
    assert absent == {"GPU": "NVML: NVML Shared Library Not Found"}


def test_a_slice_has_no_power_or_clocks_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FakeCard(slices=(FakeCard(5, prefix="MIG-", processes=(ME,)),), processes=(ME, 1), at_work={1: 99})
    window, absent = watched(monkeypatch, card)
    assert window == GpuWindow(), "those of the card are those of all its slices"
    assert "MIG slice" in absent["GPU"]


def test_a_cuda_cell_gets_the_cards_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(FakeCard(processes=(ME,), reasons=0x4)).install(monkeypatch, devices, gpu_telemetry)
    telemetry = Telemetry("cuda:0")
    with telemetry.window(ME) as finished:
        sum(range(1000))
    values = {m.metric: m.value for m in summed_up([dataclasses.replace(finished(), images=15)], telemetry.absent)[0]}
    assert values["energy_j_per_image"] == 5.0
    assert values["gpu_clock_hz"] == 1.98e9
    assert values["gpu_memory_clock_hz"] == 2.619e9
    assert values["gpu_temperature_c"] == 61
    assert values["power_capped_share"] == 1.0


@pytest.mark.parametrize(
    ("bit", "disturbance"),
    [(bit, []) for bit in (0x1, 0x2, 0x4, 0x10, 0x100)]  # idle, locked clocks, power limit, other cards, display
    + [(0x8, ["GPU throttled: hardware slowdown"]), (0x20, ["GPU throttled: thermal slowdown (software)"])]
    + [(0x40, ["GPU throttled: thermal slowdown (hardware)"]), (0x80, ["GPU throttled: power brake"])],
)
def test_a_card_at_its_power_limit_is_not_disturbed(
    monkeypatch: pytest.MonkeyPatch, bit: int, disturbance: list[str]
) -> None:
    """A large cell runs at the limit; that is a property of the cell. Heat and faulty power are not."""
    FakeNvml(FakeCard(processes=(ME,), reasons=bit)).install(monkeypatch, devices, gpu_telemetry)
    with Telemetry("cuda:0").window(ME) as finished:
        pass
    window = finished()
    assert window.gpu is not None
    assert window.gpu.power_capped_share == (bit == 0x4)
    assert window.disturbances() == disturbance
