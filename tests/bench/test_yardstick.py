"""Test the yardstick: a machine that changes speed between sizes does not bend a curve."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console
from run_support import ENVIRONMENT, fake_executor, make_plan, quiet_progress
from sampler_support import Simulated, measure, quiet, sampled_s

from sema_bench.analysis.scaling import analyse
from sema_bench.driver.sampler import YARDSTICK_VISIT_S
from sema_bench.driver.schedule import Schedule
from sema_bench.report.table import render
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.run_folder import RunFolder


def slowed(side: int, factor: float) -> Record:
    """Return a record of a model linear in pixels, on a machine ``factor`` times slower at this size."""
    values = {"latency_s": 1e-6 * side**2 * factor, "yardstick_s": 0.05 * factor}
    values["relative_latency"] = values["latency_s"] / values["yardstick_s"]
    measurements = {name: Measurement(metric=name, value=value) for name, value in values.items()}
    return Record(cell=Cell(model="good", height=side, width=side), status="ok", measurements=measurements)


def test_drift_between_sizes_bends_latency_and_not_relative_latency() -> None:
    records = [slowed(side, factor) for side, factor in ((224, 1.6), (384, 1.5), (512, 1.0), (768, 1.1), (1024, 1.0))]
    fits = {fit.metric: fit for fit in analyse(records).fits}
    bent, straight = fits["latency_s"].exponent, fits["relative_latency"].exponent
    assert bent is not None
    assert straight is not None
    assert bent.value < 0.9
    assert straight.value == pytest.approx(1.0, abs=1e-9)


def test_the_table_says_how_large_the_drift_was() -> None:
    text = io.StringIO()
    records = [slowed(224, 1.6), slowed(384, 1.6), slowed(512, 1.0), slowed(1024, 1.0)]
    render(records, Console(file=text, width=100), details=True)
    assert "machine speed drifted 60%" in text.getvalue()
    assert "60% longer" in text.getvalue()


def run_with(yardstick: str, folder: Path) -> list[Record]:
    cell = Cell(model=yardstick, height=100, width=100)
    plan = dataclasses.replace(make_plan(("good", "good2"), (224, 512)), yardstick=cell)
    executor = fake_executor(plan)
    run = RunFolder.create(folder, "fake", "run")
    with run.lock():
        records = Schedule(plan, run, environment=ENVIRONMENT).run(executor, quiet_progress())
    executor.close()
    return records


def test_every_timed_cell_is_given_in_units_of_the_yardstick(tmp_path: Path) -> None:
    for record in run_with("slow0.05", tmp_path):
        relative, latency = record.value("relative_latency"), record.value("latency_s")
        assert record.value("yardstick_s") == pytest.approx(0.05, rel=0.01)
        assert relative is not None
        assert latency is not None
        assert relative == pytest.approx(latency / 0.05, rel=0.01)


def test_the_yardstick_takes_a_twentieth_of_the_time_however_few_models_are_left() -> None:
    pool = Simulated({"a": 0.1, "b": 0.1, "fixed": 0.01}, quiet, spread={"b": 0.2})
    records = measure(pool, ["a", "b"], yardstick=Cell(model="fixed", height=224, width=224), time_limit_s=20.0)
    visits, rounds = pool.visits.count("fixed"), records[1].details["rounds"]
    assert rounds > 40
    assert 0.04 < visits * YARDSTICK_VISIT_S / sum(map(sampled_s, records)) < 0.06
    assert visits < rounds / 2


@pytest.mark.parametrize("broken", ["crash", "error", "sampler-crash"])
def test_a_yardstick_that_fails_costs_no_cell(tmp_path: Path, broken: str) -> None:
    for record in run_with(broken, tmp_path):
        assert record.status == "ok"
        assert record.value("relative_latency") is None
