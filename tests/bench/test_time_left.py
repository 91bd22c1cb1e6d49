"""The time left is right soon, and the display says what is measured and how far the run is."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sema_bench.driver.sampler import ENERGY_S, ENERGY_SETTLE_S
from sema_bench.report.progress import WRITE_S, ProgressDisplay
from sema_bench.report.time_left import TimeLeft
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.load import load_runs
from sema_bench.worker.probes.throughput import VISIT_S, sampled_share, visit_size

RESULTS = Path(__file__).parents[2] / "results"
SAMPLING = Sampling(time_limit_s=2.0)


Event = tuple[float, Callable[[TimeLeft], None]]


def as_it_ran(records: list[Record], *, start_s: float, later_s: float, cost: float, write_s: float) -> list[Event]:
    """Give the cells of a run the clock of a live one: inspection, warm-up, rounds of sampling, tables and plots.

    Workers take ``start_s`` in the first group and ``later_s`` in others, and a second of samples ``cost``.
    """
    now, events = 0.0, []

    def phase(of: Cell, name: str, share: float = 0.0) -> None:
        at = now
        events.append((at, lambda left: left.phase(of, name, share, now=at)))

    def finish(record: Record) -> None:
        at = now
        events.append((at, lambda left: left.finished(record, now=at)))

    for number, (_, each) in enumerate(itertools.groupby(records, key=lambda record: record.cell.resolution)):
        group, taken = list(each), {}
        for record in group:
            phase(record.cell, "inspecting")
            now += later_s / len(group) if number else start_s / len(group)
            if "latency_s" not in record.measurements:
                now += record.duration_s
                finish(record)
            else:
                now += 0.5 * (record.duration_s - sum(record.measurements["latency_s"].samples))
                taken[record.cell.id] = 0
        active = [record for record in group if record.cell.id in taken]
        for record in active:
            phase(record.cell, "warming up")
            now += 0.5 * (record.duration_s - sum(record.measurements["latency_s"].samples))
        while active:
            for record in list(active):
                samples, done = record.measurements["latency_s"].samples, taken[record.cell.id]
                phase(record.cell, "sampling", sampled_share(samples[:done], SAMPLING))
                visit = samples[done : done + visit_size(samples[0], VISIT_S)]
                now += cost * sum(visit)
                taken[record.cell.id] = done + len(visit)
                phase(record.cell, "sampling", sampled_share(samples[: done + len(visit)], SAMPLING))
            for record in list(active):
                if taken[record.cell.id] == len(record.measurements["latency_s"].samples):
                    active.remove(record)
                    finish(record)
        now += write_s
        events.append((now, lambda left: left.wrote(write_s)))
    return events


@pytest.mark.parametrize("run", ["2026-11-21-cpu", "2026-11-21-field-cpu"])
@pytest.mark.parametrize(
    ("start_s", "later_s", "cost", "write_s"), [(0.0, 0.0, 1.0, 1.0), (20.0, 2.0, 1.15, 3.0), (50.0, 30.0, 1.4, 3.0)]
)
def test_the_time_left_is_right_within_half_from_a_tenth_of_the_cells_to_the_end(
    run: str, start_s: float, later_s: float, cost: float, write_s: float
) -> None:
    (loaded,) = load_runs(RESULTS, [run])
    records = list(loaded.records)
    groups = [list(group) for _, group in itertools.groupby((r.cell for r in records), key=lambda c: c.resolution)]
    left, wrong, done = TimeLeft(groups, sampling=SAMPLING, now=0.0, write_s=WRITE_S), [], 0
    events = as_it_ran(records, start_s=start_s, later_s=later_s, cost=cost, write_s=write_s)
    for at, event in events:
        event(left)
        done = len(records) - len(left._group_of)
        predicted, real = left.seconds(now=at) or 0.0, events[-1][0] - at
        if 10 * done >= len(records) and abs(predicted - real) > 3 and not 1 / 1.5 <= predicted / real <= 1.5:
            wrong.append((round(at), done, round(predicted), round(real)))
    assert not wrong


def cell(side: int, model: str = "a") -> Cell:
    return Cell(model=model, height=side, width=side)


def timed(of: Cell, latency: float, duration: float) -> Record:
    measured = Measurement(metric="latency_s", value=latency, samples=(latency,) * 6)
    return Record(cell=of, status="ok", measurements={"latency_s": measured}, duration_s=duration)


def test_nothing_is_predicted_before_the_first_cell() -> None:
    left = TimeLeft([[cell(64)], [cell(96)]], sampling=SAMPLING, now=0.0)
    assert (left.seconds(now=9.0), left.text(now=9.0)) == (None, "")


def test_larger_sizes_of_a_model_that_ran_out_of_memory_take_no_time() -> None:
    left = TimeLeft([[cell(64)], [cell(1024)], [cell(2048)]], sampling=SAMPLING, now=0.0)
    left.finished(Record(cell=cell(64), status="oom", duration_s=10.0), now=10.0)
    assert (left.seconds(now=10.0) or 0.0) <= 2.0


def test_a_size_whose_passes_do_not_fit_into_the_limit_is_expected_to_be_skipped() -> None:
    left = TimeLeft([[cell(256)], [cell(4096)]], sampling=SAMPLING, now=0.0)
    left.finished(timed(cell(256), 0.5, 10.0), now=10.0)
    assert (left.seconds(now=10.0) or 0.0) <= 2.0


def test_without_timing_all_cells_take_the_same_time() -> None:
    left = TimeLeft([[cell(64)], [cell(1024)], [cell(2048)]], sampling=None, now=0.0)
    left.finished(Record(cell=cell(64), status="ok", duration_s=1.0), now=1.0)
    assert left.seconds(now=1.0) == pytest.approx(2.0)


def test_machines_that_measure_side_by_side_share_the_time_left() -> None:
    """They report no phases: two of them, each with a group of ten seconds, and two more groups to come."""
    cells = [cell(side, "a") for side in (64, 65, 66, 67)]
    left = TimeLeft([[each] for each in cells], sampling=None, now=0.0)
    for each in cells[:2]:
        left.finished(Record(cell=each, status="ok", duration_s=10.0), now=10.0)
    assert left.seconds(now=10.0) == 10.0


def test_the_last_tables_and_plots_are_part_of_the_time_left() -> None:
    left = TimeLeft([[cell(64)]], sampling=SAMPLING, now=0.0, write_s=5.0)
    left.wrote(4.0)
    left.finished(timed(cell(64), 0.1, 10.0), now=10.0)
    assert (left.seconds(now=10.0), left.seconds(now=13.0), left.text(now=11.0)) == (4.0, 1.0, "about 3 s left")


def test_models_that_start_later_take_as_long_to_start_as_the_first_ones() -> None:
    """As with ``--batch 1,2``: the workers of the second batch are new."""
    first, second = cell(64), dataclasses.replace(cell(64), batch=2)
    left = TimeLeft([[first], [cell(96)], [second]], sampling=SAMPLING, now=0.0)
    left.phase(first, "inspecting", 0.0, now=0.0)
    left.finished(Record(cell=first, status="oom", duration_s=10.0), now=40.0)
    left.finished(Record(cell=cell(96), status="skipped"), now=40.0)
    assert left.seconds(now=40.0) == 30.0


def test_a_card_whose_energy_is_read_after_the_samples_is_waited_for() -> None:
    small, large = (dataclasses.replace(cell(side), device="cuda:0") for side in (64, 96))
    record = timed(small, 0.001, 3.1)
    energy = Measurement(metric="energy_j_per_image", value=1.0)
    record = dataclasses.replace(record, measurements={**record.measurements, "energy_j_per_image": energy})
    left = TimeLeft([[small], [large]], sampling=SAMPLING, now=0.0)
    left.finished(record, now=3.1)
    left.phase(large, "sampling", 1.0, now=6.0)
    assert left.seconds(now=6.0) == ENERGY_SETTLE_S + ENERGY_S


def test_cells_may_change_their_phase_in_other_threads_meanwhile() -> None:
    def count() -> None:
        for side in range(64, 2048):
            left.phase(cell(side), "inspecting", 0.0, now=10.0)
        done.set()

    interval, done = sys.getswitchinterval(), threading.Event()
    left = TimeLeft([[cell(side)] for side in range(32, 2048)], sampling=SAMPLING, now=0.0)
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
    groups = [[cell(side, f"m{i}") for i in range(100)] for side in range(32, 1032, 10)]
    cells = list(itertools.chain(*groups))
    left = TimeLeft(groups, sampling=SAMPLING, now=0.0)
    for i, each in enumerate(cells, 1):
        left.phase(each, "sampling", 0.5, now=i / 2000)
        left.finished(timed(each, 0.001, 0.0005), now=i / 2000)
        left.text(now=i / 2000)
    assert len(looks) <= 6  # five seconds
    assert len(predictions) <= 6 * (len(cells) + 100 * 100)  # each cell, or each size from each model


def test_a_quiet_display_predicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TimeLeft, "seconds")
    display = ProgressDisplay(sampling=SAMPLING, quiet=True)
    display.start(total=2, missing=[[cell(64)], [cell(96)]])
    display.phase(cell(64), "sampling")
    display.finished(timed(cell(64), 0.1, 10.0))


def test_the_display_shows_what_is_measured_how_far_it_is_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    shown = io.StringIO()
    display = ProgressDisplay(sampling=SAMPLING, clock=lambda: float(next(clock)))
    monkeypatch.setattr(display._console, "_file", shown)
    display.start(total=3, missing=[[cell(64)], [cell(96)], [cell(128)]])
    display.phase(cell(64), "sampling")
    display.finished(timed(cell(64), 0.1, 10.0))
    (task,) = display._bar.tasks
    assert (task.fields["phase"], task.completed, task.total) == ("64 a sampling", 1, 3)
    assert str(display._left.text(now=20.0)).endswith("left")
    assert "[1/3] 64 a: ok" in shown.getvalue()
    assert shown.getvalue().rstrip().endswith("left")
