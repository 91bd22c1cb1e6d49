"""Test that the time left is soon right, and that the display shows what is measured and how far the run is."""

from __future__ import annotations

import dataclasses
import io
import itertools
import sys
import threading
from typing import Any

import pytest
from sampler_support import Bursts, Simulated, drifting, quiet

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.sampler import ENERGY_S, ENERGY_SETTLE_S, InterleavedSampler
from sema_bench.report.progress import WRITE_S, ProgressDisplay
from sema_bench.report.time_left import TimeLeft
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling

SAMPLING = Sampling(time_limit_s=2.0)
#: Latencies of six models at 224 px; at other sizes they grow with the pixels, softmax's faster.
MODELS = {"sema": 0.1, "mila": 0.1, "linear": 0.09, "sima": 0.09, "softmax": 0.12, "deit": 0.15}


@pytest.mark.parametrize(
    ("noise", "factor", "most"),
    [(quiet, 1.5, 0.01), (drifting, 2.5, 0.25), (Bursts(0), 2.0, 0.15)],
    ids=["quiet", "drift", "bursts"],
)
@pytest.mark.parametrize(
    ("scale", "start_s", "later_s", "write_s"),
    [(0.1, 0.0, 0.0, 1.0), (0.1, 20.0, 2.0, 3.0), (0.8, 20.0, 2.0, 3.0), (0.8, 50.0, 30.0, 3.0)],
)
def test_the_time_left_is_right_from_a_tenth_of_the_cells_on(
    noise: Any, factor: float, most: float, scale: float, start_s: float, later_s: float, write_s: float
) -> None:
    """Run the real sampler on a simulated machine, whose workers take ``start_s`` to start in the first group.

    How long noise delays the last group is luck, which matters in a run of two minutes.
    """
    sampling = Sampling(time_limit_s=4.0)
    pool = Simulated({}, noise)
    groups = [[cell(side, model) for model in MODELS] for side in range(224, 1025, 114)]
    left, said, done = TimeLeft(groups, sampling=sampling, now=0.0, write_s=WRITE_S), [], 0

    def listen(of: Cell, phase: str, share: float = 0.0) -> None:
        left.phase(of, phase, share, now=pool.now)
        if 10 * done >= len(MODELS) * len(groups):
            said.append((pool.now, left.seconds(now=pool.now) or 0.0))

    sampler = InterleavedSampler(pool, sampling, listen)  # type: ignore[arg-type]
    for group in groups:
        pixels = (group[0].height / 224) ** 2
        power = {"softmax": 1.3, "deit": 1.2}
        pool.latencies = {model: scale * s * pixels ** power.get(model, 1.0) for model, s in MODELS.items()}
        attempts = [CellAttempt(each) for each in group]
        for attempt in attempts:
            listen(attempt.cell, "inspecting")
            pool.now += (later_s if done else start_s) / len(group)
        for attempt in attempts:
            sampler.prepare(attempt)
        for attempt, failure in sampler.sample(attempts):
            left.finished(attempt.record(failure), now=pool.now)
            done += 1
        pool.now += write_s
        left.wrote(write_s)
    wrong = [
        (at, predicted, real)
        for at, predicted in said
        if abs(predicted - (real := pool.now - at)) > 5 and not 1 / factor <= predicted / real <= factor
    ]
    assert len(wrong) <= most * len(said)


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
    """Two machines report no phases; each has finished a group of ten seconds, and two more groups are to come."""
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
    assert ENERGY_SETTLE_S + ENERGY_S < (left.seconds(now=6.0) or 0.0) < ENERGY_SETTLE_S + ENERGY_S + 1.0


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
    assert len(looks) <= 6  # in five seconds
    assert len(predictions) <= 6 * (len(cells) + 100 * 100)  # each cell, or each size from each model


def test_a_quiet_display_predicts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(TimeLeft, "seconds")
    display = ProgressDisplay(sampling=SAMPLING, quiet=True)
    display.start(total=2, missing=[[cell(64)], [cell(96)]])
    display.phase(cell(64), "sampling")
    display.finished(timed(cell(64), 0.1, 10.0))


@pytest.mark.parametrize("live", [True, False])
def test_only_a_terminal_breaks_a_long_sentence_and_only_between_words(
    live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    display = ProgressDisplay()
    display._live = live
    monkeypatch.setattr(display._console, "_file", shown)
    monkeypatch.setattr(display._console, "_width", 80)
    display.say("some words " * 12, wrap=True)
    lines = shown.getvalue().splitlines()
    assert len(lines) == (2 if live else 1)
    assert all(line.split()[-1] in ("some", "words") for line in lines)


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
