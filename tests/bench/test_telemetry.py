"""Test telemetry: the kernel's and NVML's counters judge windows; missing counters are named and fail nothing."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console
from run_support import fake_executor, make_plan, ok_record

from sema_bench.machine.cpu_telemetry import CpuReading, energy_between
from sema_bench.machine.disturbance import Window, may_calm_down, summed_up
from sema_bench.machine.gpu_telemetry import GpuWindow
from sema_bench.report.table import render
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.table import records_frame

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
    """Return a reading a quarter of a second later: the worker had two CPUs to itself, except for ``changes``."""
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
        {"stolen_s": 0.01, "busy_s": 50.44},  # one tick is more than 2 % here, but chance
        {"worker_s": 40.25, "busy_s": 50.35, "idle_s": 50.15},  # others work, but CPUs are idle too
        {"worker_s": 40.49},
    ],
)
def test_what_left_the_cell_its_cpus_does_not(changes: dict[str, float]) -> None:
    assert window(**changes).disturbances() == []


def test_a_window_shorter_than_the_kernels_ticks_is_not_judged() -> None:
    assert window(busy_s=50.04, worker_s=40.0).disturbances() == []


def test_cards_are_judged_by_their_limits_and_their_company() -> None:
    assert window(GpuWindow(power_capped_share=1.0)).disturbances() == []
    assert window(GpuWindow(throttles=frozenset({"power brake"}))).disturbances() == ["GPU throttled: power brake"]
    assert window(GpuWindow(other_processes=1)).disturbances() == ["other processes on the GPU"]
    busy_cpu = window(GpuWindow(other_processes=0), worker_s=40.0)
    assert busy_cpu.disturbances() == [], "a full CPU beside it does not slow a card"


def test_sampling_goes_on_only_while_others_may_go_away() -> None:
    crowded, hot = window(worker_s=40.0), window(GpuWindow(throttles=frozenset({"power brake"})))
    assert may_calm_down([crowded, crowded, window()])
    assert not may_calm_down([crowded, window()])
    assert not may_calm_down([hot, hot])
    assert not may_calm_down([])


def test_energy_is_that_of_the_card_by_counter_else_by_power() -> None:
    by_counter = window(GpuWindow(energy_j=50.0, power_w=1.0))
    by_power = window(GpuWindow(power_w=200.0))
    assert (by_counter.energy_j, by_power.energy_j, window(GpuWindow()).energy_j) == (50.0, 50.0, None)
    metrics = {m.metric: m.value for m in summed_up([by_counter, by_power], {})[0]}
    assert metrics["power_w"] == pytest.approx(200.0)
    assert metrics["energy_j_per_image"] == pytest.approx(5.0)


def test_energy_comes_from_the_long_window_where_there_is_one() -> None:
    long = dataclasses.replace(window(GpuWindow(energy_j=900.0), at_s=103.0), images=100)
    metrics = {m.metric: m.value for m in summed_up([window(GpuWindow(energy_j=1.0))], {}, energy=[long])[0]}
    assert metrics["energy_j_per_image"] == pytest.approx(9.0)
    assert metrics["power_w"] == pytest.approx(300.0)


def test_energy_that_one_window_lacks_is_not_made_up() -> None:
    metrics = {m.metric for m in summed_up([window(GpuWindow(energy_j=50.0)), window(GpuWindow())], {})[0]}
    assert metrics.isdisjoint({"power_w", "energy_j_per_image"})


def test_package_energy_survives_the_counters_start_over() -> None:
    early = dataclasses.replace(QUIET, energy_j=((262.0, 262.144), (10.0, 262.144)))
    late = dataclasses.replace(QUIET, energy_j=((1.0, 262.144), (12.0, 262.144)))
    assert energy_between(early, late) == pytest.approx(1.144 + 2.0)
    assert energy_between(early, QUIET) is None


def test_shares_and_marks_of_a_cell() -> None:
    measurements, details = summed_up([window(), window(worker_s=40.25), window(worker_s=40.25)], {"x": "y"})
    metrics = {m.metric: m.value for m in measurements}
    assert metrics["disturbed_share"] == pytest.approx(2 / 3)
    assert metrics["cpu_others_share"] == pytest.approx((0 + 0.5 + 0.5) / 3)
    assert details["telemetry"] == {
        "seconds": 0.75,
        "window_samples": [9, 9, 9],
        "disturbed_windows": [1, 2],
        "disturbances": {"other processes on a full machine": 2},
        "absent": {"x": "y"},
    }


# --- in a run -------------------------------------------------------------------------------------------------------


def measured(*models: str) -> list[Record]:
    plan = make_plan(models, (224,), time_limit_s=1.0, probes=("throughput", "telemetry"))
    executor = fake_executor(plan)
    try:
        return list(executor.run([(plan.cells, {})]))
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
    render([quiet, noisy], console, details=True)
    text = console.file.getvalue()
    assert "100!" in text
    assert text.count("0!") == 1
    assert "! disturbed in more than half of its sample windows: good at 512 (CPU time stolen" in text
    rows = records_frame([quiet, noisy])["disturbances"]
    assert rows[0] is not rows[1]
    assert rows[1] == "CPU time stolen by the hypervisor (4); throttled by the CPU quota (1)"
