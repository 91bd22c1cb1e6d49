"""Test a run from start to end, without torch: planned once, refused early, resumed only where it began."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from run_support import FAKE_WORKER

from sema_bench import run as run_module
from sema_bench.cluster import backends
from sema_bench.errors import UsageError
from sema_bench.machine.interrupts import Interrupted
from sema_bench.report.progress import ProgressDisplay
from sema_bench.report.summary import sampling_sentence
from sema_bench.run import Run
from sema_bench.spec.plan import build_plan
from sema_bench.spec.record import Environment, Record
from sema_bench.spec.suite import Suite, parse_suite
from sema_bench.spec.target import RunTarget
from sema_bench.store.run_folder import RunFolder

HERE = Environment(
    hardware={"cpu": "A", "cpus": 1, "memory_gib": 8}, software={"torch": "1"}, context={"code": "c", "commit": "x"}
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Environment]:
    """The first item is the environment of this machine; with an empty list, asking for it fails."""
    machines = [HERE]
    monkeypatch.setattr(backends, "capture", lambda models: machines[0])
    return machines


def suite(**changes: object) -> Suite:
    body: Mapping[str, Any] = {"name": "s", "claim": "", "cost": "", "probes": ["params", "throughput"], "threads": [1]}
    body = {**body, "models": ["sema_micro"], "res": "32,64", "device": "cpu", "time_limit_s": 0.2, **changes}
    return parse_suite(body, source="test")


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_is_planned_once_and_gives_a_record_for_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []

    def counted(*arguments: Any, **options: Any) -> object:
        plans.append(options)
        return build_plan(*arguments, **options)

    monkeypatch.setattr(run_module, "build_plan", counted)
    run = Run.start(suite(), root=tmp_path, name="r")
    records = run.execute(worker_command=FAKE_WORKER)
    assert len(plans) == 1
    assert [record.cell for record in records] == list(run.plan.cells)
    assert {(record.status, record.environment) for record in records} == {("ok", HERE.fingerprint)}
    assert all(record.value("relative_latency") for record in records), "the yardstick is timed beside them"
    assert {"run.json", "records.jsonl", "table.csv", "report.txt", "plots"} <= names_in(run.folder.path)


def test_a_run_that_only_ran_out_of_memory_offers_no_other_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for status, offered in (("oom", False), ("skipped", False), ("timeout", True)):
        run = Run.start(suite(), root=tmp_path, name=status)
        records = [Record(cell=cell, status=status, reason="why") for cell in run.plan.cells]
        monkeypatch.setattr(run_module.Schedule, "run", lambda *_, records=records, **options: records)
        run.execute(worker_command=FAKE_WORKER)
        assert ("--retry-failed" in capfd.readouterr().err) == offered


def test_a_quiet_run_keeps_records_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = Run.start(suite(), root=tmp_path, name="r")
    assert len(run.execute(quiet=True, worker_command=FAKE_WORKER)) == 2
    assert names_in(run.folder.path) <= {"run.json", "records.jsonl", ".lock"}
    assert capfd.readouterr() == ("", "")


def test_a_bad_request_fails_before_the_machine_is_asked_and_leaves_nothing(
    tmp_path: Path, machine: list[Environment]
) -> None:
    machine.clear()
    with pytest.raises(UsageError, match="use --device cpu"):
        Run.start(suite(device="cuda"), root=tmp_path)
    with pytest.raises(UsageError, match="bad run name"):
        Run.start(suite(), root=tmp_path, name="../r")
    assert not names_in(tmp_path)


def test_a_run_goes_on_only_on_the_machine_and_with_the_code_that_began_it(
    tmp_path: Path, machine: list[Environment]
) -> None:
    Run.start(suite(), root=tmp_path, name="r")
    machine[0] = dataclasses.replace(HERE, hardware={**HERE.hardware, "cpu": "B"})
    with pytest.raises(UsageError, match=r"in another environment \(cpu: A then, B now\)"):
        Run.resume("r", root=tmp_path).execute(worker_command=FAKE_WORKER)
    machine[0] = dataclasses.replace(HERE, context={"code": "d", "commit": "y"})
    with pytest.raises(UsageError, match=r"with other code of sema-bench \(commit x then, y now\)"):
        Run.resume("r", root=tmp_path).execute(worker_command=FAKE_WORKER)
    machine[0] = HERE
    assert len(Run.resume("r", root=tmp_path).execute(worker_command=FAKE_WORKER)) == 2


def test_a_finished_run_waits_for_no_cluster(tmp_path: Path, machine: list[Environment]) -> None:
    first = Run.start(suite(), root=tmp_path, name="r").execute(worker_command=FAKE_WORKER)
    machine.clear()
    run = Run.resume("r", root=tmp_path, target=RunTarget(executor="ray"))
    assert run.execute() == first


def test_a_run_that_another_process_writes_is_refused_before_the_machine_is_asked(
    tmp_path: Path, machine: list[Environment]
) -> None:
    Run.start(suite(), root=tmp_path, name="r")
    machine.clear()
    with (
        RunFolder(tmp_path / "r").lock(),
        pytest.raises(UsageError, match=f"is being written by process {os.getpid()}"),
    ):
        Run.resume("r", root=tmp_path).execute()


def test_run_json_says_which_part_of_the_time_was_sampled_and_a_resumed_run_adds_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.start(suite(models=["sema_micro", "sema_tiny"]), root=tmp_path, name="r")
    run.execute(worker_command=FAKE_WORKER)
    records = run.read().records
    facts = run.folder.metadata()["sampling"]
    sampled_s = sum(sum(record.measurements["latency_s"].samples) for record in records)
    assert facts["sampled_s"] == pytest.approx(sampled_s, abs=0.001)
    assert facts["share"] == pytest.approx(facts["sampled_s"] / facts["wall_s"], rel=0.02)
    assert sum(facts["stop_reasons"].values()) == len(records) == 4
    assert facts["ratios"] == 2, "one of each size is the reference"
    assert f"of {facts['wall_s']:.0f} s." in sampling_sentence(facts)

    _, *others = (tmp_path / "r/records.jsonl").read_text().splitlines()
    (tmp_path / "r/records.jsonl").write_text("\n".join(others) + "\n")
    Run.resume("r", root=tmp_path).execute(worker_command=FAKE_WORKER)
    again = run.folder.metadata()["sampling"]
    assert again["wall_s"] > facts["wall_s"]
    assert again["sampled_s"] > facts["sampled_s"]
    assert sum(again["stop_reasons"].values()) == 4


def test_a_group_that_starts_is_named_before_its_first_cell_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"models": ["sema_micro", "sema_tiny"]}
    Run.start(suite(**changes), root=tmp_path, name="r").execute(worker_command=FAKE_WORKER)
    lines = [line.split(" sema_")[0] for line in capsys.readouterr().err.splitlines()]
    start = lines.index("4 cells")
    small, large = ([f"{size}: building and warming up 2 cells", f"[{n}/4] {size}"] for n, size in ((1, 32), (3, 64)))
    assert lines[start + 1 : start + 7] == [*small, "[2/4] 32", *large, "[4/4] 64"]
    Run.start(suite(probes=["params"]), root=tmp_path, name="p").execute(worker_command=FAKE_WORKER)
    assert "warming up" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finished", "said"),
    [(0, "0 of 2 cells finished, so a resume starts over"), (1, "1 of 2 cells finished and are kept")],
)
def test_a_stopped_run_says_how_many_cells_are_kept(
    finished: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(ProgressDisplay, "finished" if finished else "start", stop)
    monkeypatch.chdir(tmp_path)
    run = Run.start(suite(), root=Path("results"), name="r")
    with pytest.raises(Interrupted):
        run.execute(worker_command=FAKE_WORKER)
    assert ("sampling" in run.folder.metadata()) == (finished > 0), "time without a record is no part of the share"
    assert f"stopped; {said}. Resume with: sema-bench run --resume r\n" in capsys.readouterr().err
    with pytest.raises(Interrupted):
        Run.start(suite(probes=["params"]), root=Path("a b"), name="r").execute(worker_command=FAKE_WORKER)
    assert "Resume with: sema-bench run --resume r --out 'a b'\n" in capsys.readouterr().err


def test_a_sentence_about_sampling_takes_any_json() -> None:
    assert sampling_sentence({}) == ""
    assert sampling_sentence({"stop_reasons": [3], "wall_s": "x"}) == ""
    assert (
        sampling_sentence({"stop_reasons": {"x": {}}, "wall_s": 60, "sampled_s": None})
        == "Timed samples took 0% of 60 s."
    )
    for wall_s in (10**400, math.inf, math.nan):
        assert sampling_sentence({"stop_reasons": {"x": 1}, "wall_s": wall_s}) == ""
    odd = {"stop_reasons": {"a\nb": "\x1b"}, "wall_s": 60, "ratios": "\n", "ratios_known": "\x1b[31m"}
    assert sampling_sentence(odd).isprintable()
