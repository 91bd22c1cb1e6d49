"""Test how the harness measures itself, with workers whose noise and clocks are known."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console
from run_support import FAKE_WORKER

from sema_bench.driver.worker_process import CellFailure
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling
from sema_bench.studies.selftest.report import print_selftest
from sema_bench.studies.selftest.selftest import Clocks, Cost, SelfTest, Spread, run_selftest, verdict

CELL = Cell(model="slow0.002", height=64, width=64)
SAMPLING = Sampling(precision=0.02, time_limit_s=0.2)


def selftest(*, side: tuple[float, ...] = (1.0, 1.01, 0.99), precision: float = 0.05, ratio: float = 1.0) -> SelfTest:
    return SelfTest(
        cell=CELL,
        precision=precision,
        sequential=Spread((1.0, 1.3, 0.9), interval=None, disturbed=1),
        interleaved=Spread(side, interval=0.01),
        cost=Cost(request_s=1e-4, sample_s=2e-5, timed_share=0.97),
        clocks=Clocks(("a", "b"), ratio=ratio, worst=0.01, resolution_s=1e-9),
        absent={"CPU energy": "no RAPL"},
    )


def test_the_spread_of_copies_is_that_of_their_logarithms() -> None:
    spread = Spread((1.0, math.e, math.e**2), interval=None)
    assert spread.half_width == pytest.approx(4.303, abs=0.001), "Student's t of two degrees of freedom"
    assert spread.floor == pytest.approx(math.sqrt(2) * spread.half_width)
    assert spread.largest_difference == pytest.approx(math.e**2 - 1)
    assert spread.typical_difference == pytest.approx(math.e - 1)
    assert Spread((2.0, 2.0, 2.0), interval=None).half_width == 0


def test_copies_run_in_processes_of_their_own_and_quiet_ones_agree() -> None:
    lines: list[str] = []
    test = run_selftest(CELL, sampling=SAMPLING, copies=3, log=lines.append, worker_command=FAKE_WORKER)
    assert len(test.sequential.medians_s) == len(test.interleaved.medians_s) == 3
    assert test.interleaved.half_width < 0.005
    assert test.precise_enough
    assert test.clocks.agree
    assert test.cost.request_s > 0
    assert lines == [f"copy {n} of 3, alone" for n in (1, 2, 3)] + [
        "3 copies, side by side",
        "what measuring costs, and the clocks",
    ]
    assert json.loads(json.dumps(test.to_json()))["precise_enough"] is True


def test_processes_that_differ_are_found_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NOISE", "0.05")
    test = run_selftest(CELL, sampling=SAMPLING, copies=5, worker_command=FAKE_WORKER)
    assert test.interleaved.largest_difference > 0.05, "five processes in a row have five of seven speeds"
    assert not test.precise_enough
    assert "TOO NOISY for ±2.0%" in next(verdict(test))


def test_clocks_that_differ_are_found_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DRIFT", "1.02")
    test = run_selftest(CELL, sampling=SAMPLING, copies=3, worker_command=FAKE_WORKER)
    assert test.clocks.ratio == pytest.approx(1.02)
    assert any(line.startswith("THE CLOCKS DISAGREE: a counts +2.00% against b") for line in verdict(test))


def test_a_cell_that_does_not_run_says_why() -> None:
    with pytest.raises(CellFailure, match="no such thing"):
        run_selftest(Cell(model="error", height=64, width=64), sampling=SAMPLING, copies=3, worker_command=FAKE_WORKER)


def test_what_is_printed_says_what_this_machine_can_tell_apart() -> None:
    console = Console(file=io.StringIO(), width=200)
    print_selftest(selftest(), console)
    text = console.file.getvalue()
    assert "precise enough for ±5.0%: one model beside another can be measured to ±4.3%" in text
    assert "below 6.1% between models sampled side by side, and below 115.2% between runs one after the other" in text
    assert "cost of measuring: 20.0 µs beside each sample, 100 µs a request; 97.0% of the time" in text
    assert "this machine does not report CPU energy (no RAPL)" in text
    assert "1 of 3" in text
    assert "CLOCKS" not in text


def test_time_that_was_too_short_is_distinguished_from_a_noisy_machine() -> None:
    lines = list(verdict(selftest(precision=0.005)))
    assert any("a longer --time-limit may help" in line for line in lines)
    assert not any("--time-limit" in line for line in verdict(selftest(precision=0.015)))


def test_the_clocks_of_this_machine_agree() -> None:
    from sema_bench.worker.stopwatch import Stopwatch
    from sema_bench.worker.workload import Workload

    clocks = Stopwatch(Workload(Cell(model="sema_tiny", height=64, width=64))).two_clocks(10)
    assert len(clocks.first_s) == len(clocks.second_s) == 10
    assert sum(clocks.first_s) == pytest.approx(sum(clocks.second_s), rel=0.01)
    assert 0 < clocks.resolution_s < 1e-3
