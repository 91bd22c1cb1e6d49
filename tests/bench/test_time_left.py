"""The time left is right soon, and the display says what is measured and how far the run is."""

from __future__ import annotations

import io
import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from sema_bench.report.progress import ProgressDisplay
from sema_bench.report.time_left import TimeLeft
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.load import load_runs

RESULTS = Path(__file__).parents[2] / "results"
SAMPLING = Sampling(time_limit_s=2.0)


def replay(records: list[Record], overhead: float, start_s: float) -> list[tuple[float, float]]:
    """Feed a run group by group, as it ends its cells: all near the end; return (predicted, real) after each cell."""
    groups = [list(group) for _, group in itertools.groupby(records, key=lambda record: record.cell.resolution)]
    takes = [overhead * sum(record.duration_s for record in group) for group in groups]
    takes[0] += start_s
    left, now, pairs = TimeLeft([record.cell for record in records], sampling=SAMPLING, now=0.0), 0.0, []
    for group, length in zip(groups, takes, strict=True):
        for record in group:
            left.phase(record.cell, "inspecting")
            if record.status != "skipped":
                left.phase(record.cell, "sampling")
        for i, record in enumerate(group):
            at = now + length * (0.85 + 0.15 * (i + 1) / len(group))
            left.finished(record, now=at)
            pairs.append((left.seconds(now=at) or 0.0, sum(takes) - at))
        now += length
    return pairs


@pytest.mark.parametrize("run", ["2026-11-21-cpu", "2026-11-21-field-cpu"])
@pytest.mark.parametrize(("overhead", "start_s"), [(1.0, 0.0), (1.1, 20.0), (1.4, 20.0)])
def test_the_time_left_is_right_within_half_after_a_tenth_of_the_cells(
    run: str, overhead: float, start_s: float
) -> None:
    (loaded,) = load_runs(RESULTS, [run])
    pairs = replay(list(loaded.records), overhead, start_s)
    early = pairs[len(pairs) // 10 : len(pairs) // 2]
    assert all(1 / 1.5 <= predicted / real <= 1.5 for predicted, real in early)


def cell(side: int, model: str = "a") -> Cell:
    return Cell(model=model, height=side, width=side)


def timed(of: Cell, latency: float, duration: float) -> Record:
    measured = Measurement(metric="latency_s", value=latency, samples=(latency,) * 6)
    return Record(cell=of, status="ok", measurements={"latency_s": measured}, duration_s=duration)


def test_nothing_is_predicted_before_the_first_cell() -> None:
    left = TimeLeft([cell(64), cell(96)], sampling=SAMPLING, now=0.0)
    assert (left.seconds(now=9.0), left.text(now=9.0)) == (None, "")


def test_larger_sizes_of_a_model_that_ran_out_of_memory_take_no_time() -> None:
    left = TimeLeft([cell(64), cell(1024), cell(2048)], sampling=SAMPLING, now=0.0)
    left.finished(Record(cell=cell(64), status="oom", duration_s=10.0), now=10.0)
    assert (left.seconds(now=10.0) or 0.0) <= 2.0


def test_a_size_whose_passes_do_not_fit_into_the_limit_is_expected_to_be_skipped() -> None:
    left = TimeLeft([cell(256), cell(4096)], sampling=SAMPLING, now=0.0)
    left.finished(timed(cell(256), 0.5, 10.0), now=10.0)
    assert (left.seconds(now=10.0) or 0.0) <= 2.0


def test_without_timing_all_cells_take_the_same_time() -> None:
    left = TimeLeft([cell(64), cell(1024), cell(2048)], sampling=None, now=0.0)
    left.finished(Record(cell=cell(64), status="ok", duration_s=1.0), now=1.0)
    assert left.seconds(now=1.0) == pytest.approx(2.0)


def test_cells_may_change_their_phase_in_other_threads_meanwhile() -> None:
    def count() -> None:
        for side in range(64, 2048):
            left.phase(cell(side), "inspecting")
        done.set()

    interval, done = sys.getswitchinterval(), threading.Event()
    left = TimeLeft([cell(side) for side in range(32, 2048)], sampling=SAMPLING, now=0.0)
    left.finished(timed(cell(32), 0.1, 10.0), now=10.0)
    counter = threading.Thread(target=count)
    sys.setswitchinterval(1e-6)
    try:
        counter.start()
        while not done.is_set():
            assert left.seconds(now=10.0)
            left.finished(timed(cell(32), 0.1, 10.0), now=10.0)
    finally:
        sys.setswitchinterval(interval)
        counter.join()


def test_ten_thousand_cells_cost_no_more_each_than_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    predictions: list[Cell] = []
    seconds, from_curve = TimeLeft.seconds, TimeLeft._from_curve

    def counted_seconds(left: TimeLeft, *, now: float) -> float | None:
        looks.append(now)
        return seconds(left, now=now)

    def counted_from_curve(left: TimeLeft, curve: Any, of: Cell) -> float:
        predictions.append(of)
        return from_curve(left, curve, of)

    monkeypatch.setattr(TimeLeft, "seconds", counted_seconds)
    monkeypatch.setattr(TimeLeft, "_from_curve", counted_from_curve)
    cells = [cell(side, f"m{i}") for side in range(32, 1032, 10) for i in range(100)]
    left = TimeLeft(cells, sampling=SAMPLING, now=0.0)
    for i, each in enumerate(cells, 1):
        left.phase(each, "sampling")
        left.finished(timed(each, 0.001, 0.0005), now=i / 2000)
        left.text(now=i / 2000)
    assert len(looks) <= 6  # five seconds
    assert len(predictions) <= 6 * (len(cells) + 100 * 100)  # each cell, or each size from each model


def test_a_quiet_display_predicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TimeLeft, "seconds")
    display = ProgressDisplay(sampling=SAMPLING, quiet=True)
    display.start(total=2, missing=[cell(64), cell(96)])
    display.phase(cell(64), "sampling")
    display.finished(timed(cell(64), 0.1, 10.0))


def test_the_display_shows_what_is_measured_how_far_it_is_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    shown = io.StringIO()
    display = ProgressDisplay(sampling=SAMPLING, clock=lambda: float(next(clock)))
    monkeypatch.setattr(display._console, "_file", shown)
    display.start(total=3, missing=[cell(64), cell(96), cell(128)])
    display.phase(cell(64), "sampling")
    display.finished(timed(cell(64), 0.1, 10.0))
    (task,) = display._bar.tasks
    assert (task.fields["phase"], task.completed, task.total) == ("64 a sampling", 1, 3)
    assert "left" in task.fields["eta"]
    assert "[1/3] 64 a: ok" in shown.getvalue()
    assert shown.getvalue().rstrip().endswith("left")
