"""Test placement of cells: the first free lane, times of earlier runs, and cells that fit in no machine's memory."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from run_support import FAKE_WORKER, make_plan, ok_record

from sema_bench.cluster.placement import Expectation, expectation, place
from sema_bench.driver.executor import Group
from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.memory_fit import WORKER_BYTES, unfit
from sema_bench.report.plan import print_placement
from sema_bench.spec.plan import work
from sema_bench.spec.record import Environment, Record
from sema_bench.store.run_folder import RunFolder

HERE = Environment(hardware={"cpu": "A"}, software={})


def finished_run(root: Path, seconds: float, environment: Environment = HERE) -> None:
    body = {"fingerprint": environment.fingerprint, "hardware": dict(environment.hardware), "software": {}}
    run = RunFolder.create(root, "fake", metadata={"environment": body, "created_at": "2026-01-01T00:00:00Z"})
    with run.lock():
        run.append(dataclasses.replace(ok_record("good", 224), duration_s=seconds))


def test_a_group_goes_to_the_lane_that_is_free_first() -> None:
    plan = make_plan(("good",), (32, 64, 96, 128))
    seconds = dict(zip([cell.id for cell in plan.cells], (5.0, 1.0, 2.0, 3.0), strict=True))
    placed = place(plan.groups, ["a", "b"], Expectation(seconds, 1.0))
    assert [(each.lane, each.begins_s, each.ends_s) for each in placed] == [
        ("a", 0.0, 5.0),
        ("b", 0.0, 1.0),
        ("b", 1.0, 3.0),
        ("b", 3.0, 6.0),
    ]


def test_times_are_those_of_earlier_runs_on_such_machines(tmp_path: Path) -> None:
    for seconds in (1.0, 3.0, 50.0):
        finished_run(tmp_path, seconds)
    finished_run(tmp_path, 1e6, Environment(hardware={"cpu": "B"}, software={}))
    plan = make_plan(("good", "good2"), (224,))
    expected = expectation(plan.cells, tmp_path, HERE.fingerprint, on_skip=pytest.fail)
    known, unknown = plan.cells
    assert expected.of(known) == 3.0, "the median"
    assert expected.of(unknown) == pytest.approx(3.0 * work(unknown) / work(known))
    assert expectation(plan.cells, tmp_path / "none", HERE.fingerprint, on_skip=pytest.fail).scale is None


def test_of_each_model_the_largest_size_that_fits_ends_the_search() -> None:
    asked: list[int] = []

    class Counting(LocalExecutor):
        def run(self, groups: Iterable[Group]) -> Iterator[Record]:
            (group,) = groups
            asked.extend(cell.height for cell in group[0])
            yield from super().run([group])

    plan = make_plan(("good",), (32, 256, 512, 1024), probes=("forecast",))
    capacity = WORKER_BYTES + 100 * 2**20  # a fake cell needs 64 MiB at 256, 256 MiB at 512
    forecaster = Counting(plan, worker_command=FAKE_WORKER)
    try:
        reasons = unfit(plan.cells, forecaster, capacity)
    finally:
        forecaster.cancel()
    assert {cell.height for cell in reasons} == {512, 1024}
    assert asked == [1024, 512, 256]
    assert reasons[plan.cells[3]] == "needs about 1.50 GiB of memory, and a worker has 612 MiB"


def test_the_table_says_what_it_rests_on() -> None:
    plan = make_plan(("good", "good2"), (224, 256))
    out = io.StringIO()
    console = Console(file=out, width=120)
    expected = Expectation({plan.cells[0].id: 60.0}, 30.0)
    print_placement(place(plan.groups[:1], ["GPU 0"], expected), expected, {plan.cells[2]: "no room"}, console)
    words = " ".join(out.getvalue().split())
    assert "GPU 0 224 2 0:00 1:36 cpu · float32" in words
    assert "1 of 2 cells known from earlier runs" in words
    assert "left out: good at 256: no room" in words
    nothing = Expectation({}, None)
    print_placement(place(plan.groups, ["GPU 0"], nothing), nothing, {}, console)
    assert "no earlier run shows how long this takes" in out.getvalue()
