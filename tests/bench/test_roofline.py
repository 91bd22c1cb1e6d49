"""Test the roofline: where a cell lies below what the device can do, and that no cell lies above."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sema_bench.analysis.roofline import Peaks, roofline_point
from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.peaks import PeakCache, check_against_roofline
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import ProbeError
from sema_bench.report.remarks import counting_notes
from sema_bench.report.roofline_plot import draw_roofline
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.store.files import cache_folder
from sema_bench.worker import peak_rates
from sema_bench.worker.protocol import Prepare, WorkloadSpec
from sema_bench.worker.session import Session
from sema_bench.worker.workload import Workload

PEAKS = Peaks(100e9, ((10**6, 50e9), (10**8, 10e9)))
CELL = Cell(model="sema_tiny", height=224, width=224, batch=2)
TRAFFIC_BYTES = 10**8


def measured(latency_s: float, macs: float = 1e9) -> CellAttempt:
    values = {"macs": macs, "latency_s": latency_s}
    attempt = CellAttempt(CELL)
    attempt.measurements |= {key: Measurement(metric=key, value=value) for key, value in values.items()}
    return attempt


class Measure:
    """Returns one peak after the other, and counts the calls."""

    def __init__(self, *peaks: Peaks) -> None:
        self._peaks = list(peaks)
        self.asked = 0

    def __call__(self, cell: Cell) -> Peaks:
        self.asked += 1
        if not self._peaks:
            raise CellFailure("crashed", "gone")
        return self._peaks.pop(0)


def test_much_arithmetic_is_held_against_the_peak_of_products() -> None:
    point = roofline_point(flops=4e9, traffic_bytes=1e8, latency_s=0.08, peaks=PEAKS)
    assert point.intensity_flop_per_byte == 40
    assert point.achieved_flop_per_s == pytest.approx(50e9)
    assert point.share == pytest.approx(0.5)


def test_little_arithmetic_is_held_against_the_bandwidth_of_its_size() -> None:
    in_memory = roofline_point(flops=1e9, traffic_bytes=1e9, latency_s=0.2, peaks=PEAKS)
    in_cache = roofline_point(flops=1e6, traffic_bytes=2e6, latency_s=1e-4, peaks=PEAKS)
    assert in_memory.share == pytest.approx(5e9 / 10e9)
    assert in_cache.share == pytest.approx(1e10 / 25e9)
    assert PEAKS.bytes_per_s(1) == 50e9, "smaller than every copy: the smallest one's"


@pytest.mark.parametrize("copies", [(), ((10, 0.0),)])
def test_peaks_are_positive(copies: tuple[tuple[int, float], ...]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Peaks(1.0, copies)


def test_peaks_are_measured_once_and_kept_between_runs(tmp_path: Path) -> None:
    measure = Measure(PEAKS)
    book = PeakCache("abc", measure, folder=tmp_path)
    assert book.of(CELL) == book.of(CELL) == PEAKS
    assert PeakCache("abc", measure, folder=tmp_path).of(CELL) == PEAKS
    assert measure.asked == 1
    with pytest.raises(CellFailure):
        PeakCache("another environment", measure, folder=tmp_path).of(CELL)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cpu/float32/t1/retain": {"flop_per_s": -1, "copies": [[1, 1]]}}'])
def test_a_cache_that_cannot_be_read_is_measured_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "peaks-abc.json").write_text(text)
    assert PeakCache("abc", Measure(PEAKS), folder=tmp_path).of(CELL) == PEAKS
    assert json.loads((tmp_path / "peaks-abc.json").read_text())["cpu/float32/t1/retain"]["flop_per_s"] == 100e9


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert PeakCache("abc", Measure(PEAKS), folder=tmp_path / "file").of(CELL) == PEAKS


def test_the_cache_lies_where_the_user_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sema-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "sema-bench"


def test_a_cell_gets_its_place(tmp_path: Path) -> None:
    attempt = measured(0.08)
    check_against_roofline(PeakCache("abc", Measure(PEAKS), folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert attempt.value("roofline_share") == pytest.approx(0.5)
    assert attempt.value("traffic_bytes") == TRAFFIC_BYTES
    assert attempt.details["peaks"] == PEAKS.to_json()


def test_above_the_roof_the_peaks_are_measured_again_and_the_better_ones_count(tmp_path: Path) -> None:
    attempt = measured(0.02)  # 200 GFLOP/s
    measure = Measure(PEAKS, Peaks(250e9, PEAKS.copies))
    check_against_roofline(PeakCache("abc", measure, folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert measure.asked == 2
    assert attempt.value("roofline_share") == pytest.approx(0.8)


@pytest.mark.parametrize(("latency_s", "kept"), [(0.0398, True), (0.0365, True), (0.0362, False)])
def test_a_cell_may_lie_above_the_roof_by_the_uncertainty_of_the_peak(
    latency_s: float, kept: bool, tmp_path: Path
) -> None:
    attempt = measured(latency_s)  # 100.5, 109.6 and 110.5 % of the peak
    peaks = PeakCache("abc", Measure(*4 * [PEAKS]), folder=tmp_path)
    if not kept:
        with pytest.raises(CellFailure, match=r"^110% of what this device can do"):
            check_against_roofline(peaks, attempt, TRAFFIC_BYTES)
        return
    check_against_roofline(peaks, attempt, TRAFFIC_BYTES)
    assert attempt.value("roofline_share") > 1, "not clipped"
    (note,) = counting_notes([attempt.record()])
    assert "as fast as the measured peak, or faster; latency is unaffected" in note


def test_far_above_the_roof_the_peaks_are_measured_three_times_more(tmp_path: Path) -> None:
    attempt = measured(0.02)
    measure = Measure(PEAKS, PEAKS, PEAKS, Peaks(250e9, PEAKS.copies))
    check_against_roofline(PeakCache("abc", measure, folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert attempt.value("roofline_share") == pytest.approx(0.8)


def test_a_cell_that_stays_above_the_roof_is_an_error_and_is_not_clipped(tmp_path: Path) -> None:
    attempt = measured(0.02)
    with pytest.raises(CellFailure, match="200% of what this device can do") as failure:
        check_against_roofline(PeakCache("abc", Measure(*4 * [PEAKS]), folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert failure.value.status == "error"
    assert attempt.details["peaks"] == PEAKS.to_json(), "the record shows what it was held against"


@pytest.mark.parametrize(
    ("convolutions", "latency_s", "kept"),
    [(1.0, 0.011, True), (1.0, 0.009, False), (0.5, 0.026, True), (0.5, 0.022, False), (0.0, 0.03, False)],
    ids=["within 4", "beyond 4", "half of it, within 1.6", "half of it, beyond 1.6", "no convolutions"],
)
def test_convolutions_by_winograd_s_algorithm_may_lie_above_the_roof(
    convolutions: float, latency_s: float, kept: bool, tmp_path: Path
) -> None:
    attempt = measured(latency_s)
    attempt.measurements["macs_convolution"] = Measurement(metric="macs_convolution", value=convolutions * 1e9)
    attempt.details["winograd"] = True
    peaks = PeakCache("abc", Measure(*4 * [PEAKS]), folder=tmp_path)
    if not kept:
        with pytest.raises(CellFailure, match="of what this device can do"):
            check_against_roofline(peaks, attempt, TRAFFIC_BYTES)
        return
    check_against_roofline(peaks, attempt, TRAFFIC_BYTES)
    assert attempt.value("roofline_share") > 1
    (note,) = counting_notes([attempt.record()])
    assert "above the measured roofline" in note


def test_a_worker_says_which_models_may_use_winograd_s_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Prepare(WorkloadSpec(Cell(model="sema_micro", height=32, width=32), seed=0), 1.0, 0.0)
    assert "winograd" not in Session().prepare(request).details
    monkeypatch.setattr(Workload, "may_use_winograd", lambda self: True)
    assert Session().prepare(request).details["winograd"] is True


def test_only_dense_3_by_3_convolutions_of_stride_1_on_a_card_may_use_winograd_s_algorithm() -> None:
    def allowed(convolution: nn.Module, device: str = "cuda:0") -> bool:
        workload = Workload(dataclasses.replace(CELL, device=device))
        workload.__dict__["network"] = nn.Sequential(convolution)
        return workload.may_use_winograd()

    assert allowed(nn.Conv2d(8, 8, 3, padding=1))
    assert not allowed(nn.Conv2d(8, 8, 3, padding=1), "cpu")
    assert not allowed(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    assert not allowed(nn.Conv2d(8, 8, 3, stride=2))
    assert not allowed(nn.Conv2d(8, 8, 1))


def test_peaks_that_cannot_be_measured_leave_the_cell_its_other_results(tmp_path: Path) -> None:
    attempt = measured(0.08)
    check_against_roofline(PeakCache("abc", Measure(), folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert "roofline_share" not in attempt.measurements
    assert attempt.details["peaks"] == "not measured: gone"


def test_a_measurement_of_the_peaks_that_failed_is_not_tried_for_every_cell(tmp_path: Path) -> None:
    measure = Measure()
    book = PeakCache("abc", measure, folder=tmp_path)
    for _ in range(3):
        check_against_roofline(book, measured(0.08), TRAFFIC_BYTES)
    assert measure.asked == 1


def test_training_steps_and_upper_bounds_have_no_place(tmp_path: Path) -> None:
    measure = Measure(PEAKS)
    book = PeakCache("abc", measure, folder=tmp_path)
    train, bound = measured(0.001), measured(0.001)
    train.cell = dataclasses.replace(CELL, step="train")
    bound.details["counting_notes"] = ["flex_attention is counted as if nothing were masked"]
    for attempt in (train, bound):
        check_against_roofline(book, attempt, TRAFFIC_BYTES)
        assert "roofline_share" not in attempt.measurements
    assert measure.asked == 0


def test_a_cell_without_a_count_has_no_place(tmp_path: Path) -> None:
    attempt = measured(0.08)
    del attempt.measurements["macs"]
    check_against_roofline(PeakCache("abc", Measure(PEAKS), folder=tmp_path), attempt, TRAFFIC_BYTES)
    assert set(attempt.measurements) == {"latency_s"}


def test_the_figure_shows_every_place_under_the_roof(tmp_path: Path) -> None:
    book = PeakCache("abc", Measure(PEAKS), folder=tmp_path)
    attempts = [measured(0.08), measured(0.05)]
    for attempt in attempts:
        check_against_roofline(book, attempt, TRAFFIC_BYTES)
    records = [attempt.record() for attempt in attempts]
    figure = draw_roofline(records, models=["sema_tiny"])
    assert figure is not None
    lines = figure.axes[0].get_lines()
    roof = [line for line in lines if line.get_color() == "#333333"]
    assert max(roof[0].get_ydata()) == 100e9
    sides = sorted({record.cell.resolution.label for record in records})
    assert set(sides) <= {text.get_text() for text in figure.axes[0].texts}
    assert any(list(line.get_ydata()) == [50e9, 80e9] for line in lines)
    assert not [line for line in figure.axes[0].lines if line.get_color() == "white"]
    assert draw_roofline([measured(0.08).record()], models=["sema_tiny"]) is None
    share = Measurement(metric="disturbed_share", value=0.9)
    shaky = dataclasses.replace(records[0], measurements={**records[0].measurements, "disturbed_share": share})
    figure = draw_roofline([shaky, *records[1:]], models=["sema_tiny"])
    (hollow,) = [line for line in figure.axes[0].lines if line.get_color() == "white"]
    assert len(hollow.get_xdata()) == 1


@pytest.mark.parametrize(("one_s", "in_a_row"), [(1e-5, 20), (0.02, 4), (1.5, 1)])
def test_a_slow_card_computes_fewer_products_in_a_row(
    one_s: float, in_a_row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def event_seconds(work: Callable[[], object], times: int = 1) -> tuple[float, object]:
        asked.append(times)
        return times * one_s, None

    monkeypatch.setattr(peak_rates, "event_seconds", event_seconds)
    monkeypatch.setattr(peak_rates.time, "perf_counter", lambda: len(asked) * one_s * in_a_row)
    assert peak_rates.best_time(lambda: None, torch.device("cuda:0")) == pytest.approx(one_s)
    assert set(asked[1:]) == {in_a_row}
    assert len(asked) >= 6


def test_a_shape_that_does_not_fit_is_left_out_of_the_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy_rate(size: int, device: torch.device) -> float:
        if size > 2**20:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return 1e9

    def product_rate(ways: object, side: int, device: torch.device) -> float:
        if side > 512:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return 2e11

    monkeypatch.setattr(peak_rates, "_copy_rate", copy_rate)
    monkeypatch.setattr(peak_rates, "_product_rate", product_rate)
    peaks = peak_rates.measure_peaks(torch.device("cpu"), torch.float32)
    assert peaks == Peaks(2e11, ((2**19, 1e9), (2**21, 1e9)))
    monkeypatch.setitem(peak_rates._SIDES, "cpu", (1024,))
    with pytest.raises(ProbeError, match="free some of it"):
        peak_rates.measure_peaks(torch.device("cpu"), torch.float32)


def test_another_error_than_full_memory_ends_the_measurement_of_the_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> float:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(peak_rates, "_copy_rate", broken)
    monkeypatch.setattr(peak_rates, "_product_rate", lambda *_: 1.0)
    with pytest.raises(RuntimeError, match="illegal"):
        peak_rates.measure_peaks(torch.device("cpu"), torch.float32)


def test_a_way_to_multiply_that_is_far_slower_is_not_tried_on_larger_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU without bfloat16, its products took minutes in the largest size."""
    seconds, tried = {"blas": 0.01, "convolution": 1.0, "float32": 0.005}, []
    ways = [functools.partial(lambda name, side: name, name) for name in seconds]
    monkeypatch.setattr(peak_rates, "best_time", lambda way, device: tried.append(way) or seconds[way])
    rates = [peak_rates._product_rate(ways, side, torch.device("cpu")) for side in (512, 1024)]
    assert rates == [2 * 512**3 / 0.005, 2 * 1024**3 / 0.005]
    assert tried == ["blas", "convolution", "float32", "float32"]


@pytest.mark.parametrize(("device", "dtype", "count"), [("cpu", "float32", 2), ("cpu", "bfloat16", 4)])
def test_half_precision_on_a_cpu_may_multiply_in_float32(device: str, dtype: str, count: int) -> None:
    ways = peak_rates._ways_to_multiply(torch.device(device), getattr(torch, dtype))
    shapes = [tuple(way(32)().shape) for way in ways]
    assert shapes == [(32, 32), (1, 32, 1, 32), (32, 32), (1, 32, 1, 32)][:count]


def test_peaks_of_this_machine_are_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak_rates, "_SECONDS", 0.0)
    monkeypatch.setitem(peak_rates._SIDES, "cpu", (256, 512))
    peaks = peak_rates.measure_peaks(torch.device("cpu"), torch.float32)
    assert 1e9 < peaks.flop_per_s < 1e14
    assert 1e8 < peaks.memory_bytes_per_s < 1e13
    assert [size for size, _ in peaks.copies] == sorted(size for size, _ in peaks.copies)
