"""Test several executors at once: each cell runs once, cells of lost machines move, failed cells are not retried."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from fake_lane import FakeLane
from run_support import ENVIRONMENT, quiet_progress

from sema_bench.cluster.lanes import MOST_LOSSES, LaneLost, Lanes
from sema_bench.driver.executor import Group
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import UsageError, WorkerError
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.run_folder import RunFolder


def plan_of(models: tuple[str, ...], sides: tuple[int, ...]) -> Plan:
    groups = tuple(tuple(Cell(model=model, height=side, width=side) for model in models) for side in sides)
    return Plan(suite="fake", groups=groups, probes=("params",), sampling=Sampling())


def run_on(folder: Path, plan: Plan, lanes: Lanes) -> list[Record]:
    run = RunFolder.create(folder, "fake", "run")
    with run.lock():
        try:
            return Schedule(plan, run, environment=ENVIRONMENT).run(lanes, quiet_progress())
        finally:
            lanes.cancel()


def test_every_cell_is_measured_once_and_by_groups(tmp_path: Path) -> None:
    plan = plan_of(("s0.01", "s0.011"), tuple(range(32, 32 * 13, 32)))
    lanes = {f"n{k}": FakeLane(f"n{k}") for k in range(4)}
    records = run_on(tmp_path, plan, Lanes(lanes))
    assert [record.cell for record in records] == list(plan.cells), "in plan order, whoever was first"
    assert {record.status for record in records} == {"ok"}
    for group in plan.groups:
        nodes = {record.details["node"] for record in records if record.cell in group}
        assert len(nodes) == 1, "what is compared is measured in one place"
    assert len({record.details["node"] for record in records}) == 4, "and all places are used"


def test_lanes_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)

    def wait(cell: Cell) -> None:
        together.wait()

    lanes = Lanes({f"n{k}": FakeLane(f"n{k}", breaks=wait) for k in range(3)})
    groups = [((Cell(model="s0.001", height=side, width=side),), {}) for side in (32, 64, 96)]
    assert len(list(lanes.run(groups))) == 3, "three cells met at the barrier"
    lanes.close()


def test_the_cells_of_a_lost_machine_are_measured_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(("s0.01", "s0.011", "s0.012"), (32, 64, 96, 128))
    lost, other = FakeLane("lost", lost_at=2), FakeLane("other")
    records = run_on(tmp_path, plan, Lanes({"lost": lost, "other": other}))
    assert {record.status for record in records} == {"ok"}
    assert len(records) == 12
    done = [*lost.cells[:1], *other.cells]
    assert sorted(cell.id for cell in done) == sorted(cell.id for cell in plan.cells), "none twice, none lost"
    warning = "lost: the machine is gone; 1 of 2 left, and its unfinished cells are measured again"
    assert capsys.readouterr().err == f"sema-bench: warning: {warning}\n"


def test_a_lane_whose_agent_died_goes_on(tmp_path: Path) -> None:
    plan = plan_of(("s0.001", "s0.0011"), (32, 64))
    lane = FakeLane("only", lost_at=2, again=True)
    records = run_on(tmp_path, plan, Lanes({"only": lane}))
    assert [record.status for record in records] == ["ok"] * 4
    assert len(lane.cells) == 5, "the cell under way was begun again"


def test_a_run_that_owes_nothing_ends_though_no_lane_is_free() -> None:
    opens = threading.Event()

    class Waits(FakeLane):
        def open(self) -> None:
            opens.wait()

    class DiesAtTheEnd(FakeLane):
        def run(self, groups: Iterable[Group]) -> Iterator[Record]:
            yield from super().run(groups)
            raise LaneLost("the machine is gone")

    group = ((Cell(model="s0.001", height=32, width=32),), {})
    for lane, groups in ((DiesAtTheEnd("one"), [group]), (Waits("one"), [])):
        lanes = Lanes({"one": lane, "other": Waits("other")})
        records: list[Record] = []
        reader = threading.Thread(target=lambda: records.extend(lanes.run(groups)), daemon=True)  # noqa: B023
        reader.start()
        reader.join(timeout=10)
        lanes.cancel()
        assert not reader.is_alive()
        assert len(records) == len(groups)
    opens.set()


def test_a_cell_that_kills_its_machines_is_given_up(tmp_path: Path) -> None:
    def kills(cell: Cell) -> LaneLost | None:
        return LaneLost("its agent died", again=True) if cell.model == "s0.002" else None

    plan = plan_of(("s0.001", "s0.002", "s0.003"), (32,))
    lane = FakeLane("only", breaks=kills)
    records = run_on(tmp_path, plan, Lanes({"only": lane}))
    by_model = {record.cell.model: record for record in records}
    assert by_model["s0.001"].status == by_model["s0.003"].status == "ok", "its neighbours are not to blame"
    assert by_model["s0.002"].status == "crashed"
    assert by_model["s0.002"].reason == f"its agent died, {MOST_LOSSES} times"
    assert sum(cell.model == "s0.002" for cell in lane.cells) == MOST_LOSSES


def test_a_cell_that_fails_by_itself_is_not_tried_again(tmp_path: Path) -> None:
    lanes = {f"n{k}": FakeLane(f"n{k}") for k in range(2)}
    records = run_on(tmp_path, plan_of(("fail0.001", "s0.001"), (32, 64)), Lanes(lanes))
    assert [record.status for record in records] == ["error", "ok"] * 2
    assert sum(len(lane.cells) for lane in lanes.values()) == 4


def test_the_loss_of_the_last_machine_keeps_what_is_finished_and_says_how_to_go_on(tmp_path: Path) -> None:
    plan = plan_of(("s0.001",), (32, 64, 96))
    with pytest.raises(WorkerError, match=r"the last machine is lost .*continue with --resume"):
        run_on(tmp_path, plan, Lanes({"only": FakeLane("only", lost_at=2)}))
    assert [record.cell.height for record in RunFolder.open(tmp_path, "run").records()] == [32]


def test_the_loss_of_the_last_machine_with_a_cell_given_up_still_ends_the_run(tmp_path: Path) -> None:
    again = FakeLane("only", breaks=lambda cell: LaneLost("gone", again=len(again.cells) < MOST_LOSSES))
    with pytest.raises(WorkerError, match="the last machine is lost"):
        run_on(tmp_path, plan_of(("s0.001",), (32, 64)), Lanes({"only": again}))
    (record,) = RunFolder.open(tmp_path, "run").records()
    assert (record.cell.height, record.status) == (32, "crashed")


def test_an_error_of_a_lane_reaches_the_caller() -> None:
    lanes = Lanes({"n": FakeLane("n", breaks=lambda cell: UsageError("no such thing"))})
    with pytest.raises(UsageError, match="no such thing"):
        list(lanes.run([((Cell(model="s0.001", height=32, width=32),), {})]))
    lanes.cancel()


def test_a_larger_size_is_judged_by_smaller_ones_when_its_turn_comes(tmp_path: Path) -> None:
    class OutOfMemory(FakeLane):
        def run(self, groups):
            for group, skipped in groups:
                for cell in group:
                    reason = skipped.get(cell)
                    yield Record(cell=cell, status="skipped" if reason else "oom", reason=reason or "no memory")

    sides = tuple(range(32, 32 * 9, 32))
    records = run_on(tmp_path, plan_of(("s1",), sides), Lanes({f"n{k}": OutOfMemory(f"n{k}") for k in range(2)}))
    assert [record.status for record in records[:1]] == ["oom"]
    assert sum(record.status == "skipped" for record in records) >= len(sides) - 3, "no more than began at once"


def test_cancelling_ends_at_once_and_measures_nothing_more() -> None:
    lane = FakeLane("n")
    lanes = Lanes({"n": lane})
    groups = [((Cell(model="s60", height=side, width=side),), {}) for side in (32, 64)]
    records: list[Record] = []
    reader = threading.Thread(target=lambda: records.extend(lanes.run(groups)), daemon=True)
    reader.start()
    while not lane.cells:
        time.sleep(0.01)
    lanes.cancel()
    assert lane.cancelled.is_set()
    assert len(lane.cells) == 1
    assert not records
