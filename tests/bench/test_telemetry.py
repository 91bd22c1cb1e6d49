"""Telemetry: windows judged by the kernel's counters and NVML's, what is missing named, nothing failing for it."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from run_support import FAKE_WORKER, ok_record

from sema_bench.executors.local import LocalExecutor
from sema_bench.plan import Sampling
from sema_bench.report.export import records_frame
from sema_bench.report.table import render
from sema_bench.schema import Cell, Measurement, Record
from sema_bench.telemetry.cpu import CpuCounters, CpuReading, energy_between
from sema_bench.telemetry.gpu import GpuWatch, GpuWindow
from sema_bench.telemetry.windows import Telemetry, Window, may_calm_down, summed_up

QUIET = CpuReading(
    at_s=100.0,
    busy_s=50.0,
    idle_s=50.0,
    stolen_s=0.0,
    worker_s=40.0,
    throttled_s=0.0,
    energy_j=None,
    clock_hz=None,
    load=1.0,
)


def after(**changes: Any) -> CpuReading:
    """A quarter of a second on two CPUs later, all of it the worker's, but for ``changes`` to the counters."""
    later = dataclasses.replace(QUIET, at_s=100.25, busy_s=50.5, worker_s=40.5)
    return dataclasses.replace(later, **changes)


def window(gpu: GpuWindow | None = None, **changes: Any) -> Window:
    return Window(QUIET, after(**changes), gpu, images=10, samples=9)


def test_a_window_that_is_all_the_workers_is_quiet() -> None:
    assert window().disturbances() == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stolen_s": 0.02, "busy_s": 50.48}, "CPU time stolen by the hypervisor"),
        ({"worker_s": 40.4}, "other processes on a full machine"),
        ({"throttled_s": 0.01}, "throttled by the CPU quota"),
    ],
)
def test_what_took_the_cpu_away_disturbs(changes: dict[str, float], reason: str) -> None:
    assert window(**changes).disturbances() == [reason]


@pytest.mark.parametrize(
    "changes",
    [
        {"stolen_s": 0.01, "busy_s": 50.44},  # one tick is more than 2 % here, and chance
        {"worker_s": 40.25, "busy_s": 50.35, "idle_s": 50.15},  # others at work, and CPUs idle beside them
        {"worker_s": 40.49},
    ],
)
def test_what_left_the_cell_its_cpus_does_not(changes: dict[str, float]) -> None:
    assert window(**changes).disturbances() == []


def test_a_window_shorter_than_the_kernels_ticks_is_not_judged() -> None:
    assert window(busy_s=50.04, worker_s=40.0).disturbances() == []


def test_cards_are_judged_by_their_limits_and_their_company() -> None:
    assert window(GpuWindow(throttles=frozenset({"power cap"}))).disturbances() == ["GPU throttled: power cap"]
    assert window(GpuWindow(other_processes=1)).disturbances() == ["other processes on the GPU"]
    busy_cpu = window(GpuWindow(other_processes=0), worker_s=40.0)
    assert busy_cpu.disturbances() == [], "a full CPU beside it does not slow a card"


def test_sampling_goes_on_only_while_others_may_go_away() -> None:
    crowded, capped = window(worker_s=40.0), window(GpuWindow(throttles=frozenset({"power cap"})))
    assert may_calm_down([crowded, crowded, window()])
    assert not may_calm_down([crowded, window()])
    assert not may_calm_down([capped, capped])
    assert not may_calm_down([])


def test_energy_is_that_of_the_card_by_counter_else_by_power() -> None:
    by_counter = window(GpuWindow(energy_j=50.0, power_w=1.0))
    by_power = window(GpuWindow(power_w=200.0))
    assert (by_counter.energy_j, by_power.energy_j, window(GpuWindow()).energy_j) == (50.0, 50.0, None)
    found = {m.metric: m.value for m in summed_up([by_counter, by_power], {})[0]}
    assert found["power_w"] == pytest.approx(200.0)
    assert found["energy_j_per_image"] == pytest.approx(5.0)


def test_energy_comes_from_the_long_window_where_there_is_one() -> None:
    long = dataclasses.replace(window(GpuWindow(energy_j=900.0), at_s=103.0), images=100)
    found = {m.metric: m.value for m in summed_up([window(GpuWindow(energy_j=1.0))], {}, energy=[long])[0]}
    assert found["energy_j_per_image"] == pytest.approx(9.0)
    assert found["power_w"] == pytest.approx(300.0)


def test_energy_that_one_window_lacks_is_not_made_up() -> None:
    found = {m.metric for m in summed_up([window(GpuWindow(energy_j=50.0)), window(GpuWindow())], {})[0]}
    assert found.isdisjoint({"power_w", "energy_j_per_image"})


def test_package_energy_survives_the_counters_start_over() -> None:
    early = dataclasses.replace(QUIET, energy_j=((262.0, 262.144), (10.0, 262.144)))
    late = dataclasses.replace(QUIET, energy_j=((1.0, 262.144), (12.0, 262.144)))
    assert energy_between(early, late) == pytest.approx(1.144 + 2.0)
    assert energy_between(early, QUIET) is None


def test_shares_and_marks_of_a_cell() -> None:
    measurements, details = summed_up([window(), window(worker_s=40.25), window(worker_s=40.25)], {"x": "y"})
    found = {m.metric: m.value for m in measurements}
    assert found["disturbed_share"] == pytest.approx(2 / 3)
    assert found["cpu_others_share"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert details["telemetry"] == {
        "seconds": 0.75,
        "window_samples": [9, 9, 9],
        "disturbed_windows": [1, 2],
        "disturbances": {"other processes on a full machine": 2},
        "absent": {"x": "y"},
    }


# --- the kernel's files -------------------------------------------------------------------------------------------


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
    assert "no permission to read" in counters.absent["CPU energy"]
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
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
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
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(processes=(os.getpid(),)))  # type: ignore[arg-type]
    telemetry = Telemetry("cuda:0")
    with telemetry.window(os.getpid()) as finished:
        sum(range(1000))
    found = {m.metric: m.value for m in summed_up([dataclasses.replace(finished(), images=15)], telemetry.absent)[0]}
    assert found["energy_j_per_image"] == 5.0
    assert found["gpu_clock_hz"] == 1.98e9
    assert found["gpu_memory_clock_hz"] == 2.619e9
    assert found["gpu_temperature_c"] == 61


# --- in a run -------------------------------------------------------------------------------------------------------


def measured(*models: str) -> list[Record]:
    executor = LocalExecutor(
        probes=("throughput", "telemetry"), sampling=Sampling(time_limit_s=1.0), worker_command=FAKE_WORKER
    )
    try:
        executor.submit([Cell(model=model, height=224, width=224) for model in models], {})
        return list(executor.records())
    finally:
        executor.cancel()


def test_every_window_of_a_cell_is_in_its_record() -> None:
    for record in measured("good", "slow0.3"):
        telemetry = record.details["telemetry"]
        assert sum(telemetry["window_samples"]) == len(record.measurements["latency_s"].samples)
        assert len(telemetry["window_samples"]) == record.details["rounds"]
        assert record.value("load_average") is not None
        assert 0 <= (record.value("disturbed_share") or 0.0) <= 1


def test_a_cell_that_stayed_disturbed_says_so_in_table_and_csv() -> None:
    quiet, noisy = ok_record(side=224), ok_record(side=512)
    share = Measurement(metric="disturbed_share", value=0.8)
    telemetry = {"disturbances": {"CPU time stolen by the hypervisor": 4, "throttled by the CPU quota": 1}}
    noisy = dataclasses.replace(
        noisy,
        measurements={**noisy.measurements, "disturbed_share": share},
        details={"telemetry": telemetry},
    )
    console = Console(file=io.StringIO(), width=120)
    render([quiet, noisy], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "100 !" in text
    assert text.count(" !") == 1
    assert "! disturbed in more than half of its sample windows: good at 512 (CPU time stolen" in text
    rows = records_frame([quiet, noisy])["disturbances"]
    assert rows[0] is not rows[1]
    assert rows[1] == "CPU time stolen by the hypervisor (4); throttled by the CPU quota (1)"
