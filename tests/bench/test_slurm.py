"""Test array jobs by submitit, with its executor that runs tasks as local processes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest
from run_support import FAKE_WORKER, make_plan, ok_record, quiet_progress

from sema_bench.cluster.agent import AgentSetup, group_to_json
from sema_bench.cluster.slurm_states import ended, living_jobs, why_waiting
from sema_bench.cluster.slurm_task import measure_here
from sema_bench.driver.executor import ignore
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import UsageError
from sema_bench.machine.environment import capture, code_hash, environment_json
from sema_bench.run import Run
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.target import RunTarget
from sema_bench.store.run_folder import RunFolder, records_in

if TYPE_CHECKING:
    from sema_bench.cluster.slurm_cluster import SlurmCluster, SlurmTasks

slurm_cluster = pytest.importorskip(
    "sema_bench.cluster.slurm_cluster", reason="needs submitit: pip install 'sema-bench[slurm]'"
)


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return capture().fingerprint


@pytest.fixture
def local() -> SlurmCluster:
    """A cluster that need not query its machines."""
    cluster: SlurmCluster = object.__new__(slurm_cluster.SlurmCluster)
    cluster._cluster, cluster._options, cluster._jobs = "local", {}, None
    return cluster


def tasks(cluster: SlurmCluster, plan: Plan, run: RunFolder, fingerprint: str) -> SlurmTasks:
    cluster.environment = SimpleNamespace(fingerprint=fingerprint)
    return cluster.executor(plan, run.path, ignore, FAKE_WORKER)


def test_each_group_is_a_task_with_a_shard_of_its_own(tmp_path: Path, local: SlurmCluster, fingerprint: str) -> None:
    plan = make_plan(("good", "error"), (224, 256))
    run = RunFolder.create(tmp_path, "fake", "run")
    with run.lock():
        executor = tasks(local, plan, run, fingerprint)
        records = Schedule(plan, run, environment=fingerprint).run(executor, quiet_progress())
    assert [(record.cell.height, record.cell.model, record.status) for record in records] == [
        (224, "good", "ok"),
        (224, "error", "error"),
        (256, "good", "ok"),
        (256, "error", "error"),
    ]
    assert {record.details["node"] for record in records} == {os.uname().nodename}
    shards = list((run.path / "records").glob("*.jsonl"))
    assert sorted(len(shard.read_text().splitlines()) for shard in shards) == [2, 2]
    assert list((run.path / "slurm" / "logs").glob("*.err")), "logs are kept"
    assert json.loads((run.path / "slurm" / "jobs.json").read_text()) == []


def test_what_tasks_wrote_after_the_driver_died_is_not_measured_again(
    tmp_path: Path, local: SlurmCluster, fingerprint: str
) -> None:
    plan = make_plan(("good", "good2"), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    orphan = tasks(local, plan, run, fingerprint)
    orphan._waiting = [(plan.cells, {})]
    orphan._queue()
    while not ended([orphan._tasks[0].job]):
        time.sleep(0.1)
    assert {record.cell.model for record in run.records()} == {"good", "good2"}, "readers merge the shards"
    with run.lock():
        executor = tasks(local, plan, run, fingerprint)
        progress = quiet_progress()
        Schedule(plan, run, environment=fingerprint).run(executor, progress)
    assert progress.missing == 0


def test_a_task_that_was_killed_leaves_what_it_finished_and_a_reason(
    tmp_path: Path, local: SlurmCluster, fingerprint: str
) -> None:
    plan = make_plan(("good", "hang"), (224,), time_limit_s=60, probes=("params",))
    run = RunFolder.create(tmp_path, "fake", "run")
    executor = tasks(local, plan, run, fingerprint)
    records: list[Record] = []
    for record in executor.run([(plan.cells, {})]):
        records.append(record)
        if len(records) == 1:
            assert record.cell.model == "good"
            task = psutil.Process(executor._tasks[-1].job._process.pid)
            for process in (task, *task.children(recursive=True)):
                process.kill()
    assert [record.status for record in records] == ["ok", "crashed"]
    assert "ended as INTERRUPTED" in records[1].reason
    assert str(run.path / "slurm") in records[1].reason, "where the log is"


def test_a_task_on_another_kind_of_machine_measures_nothing(tmp_path: Path, local: SlurmCluster) -> None:
    plan = make_plan(("good",), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    executor = tasks(local, plan, run, "anotherkind1")
    (record,) = executor.run([(plan.cells, {})])
    assert record.status == "error"
    assert "--slurm constraint=" in record.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "needs sbatch"), ({"cluster": "moon"}, "expected slurm or local")],
)
def test_a_machine_without_slurm_is_reported(
    tmp_path: Path, options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        slurm_cluster.SlurmCluster(tmp_path, options, None)


SQUEUE = """#!/bin/sh
case "$*" in
  *--jobs=7*) printf '7_0 COMPLETED None\n7_1 RUNNING None\n7_2 NODE_FAIL None\n' ;;
  *--jobs=5*) echo '5 PENDING Resources' ;;
  *--jobs=6*) echo '6 PENDING PartitionConfig' ;;
  *--jobs=8*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;
  *) echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1 ;;
esac
"""


class Job:
    def __init__(self, name: str) -> None:
        self.job_id = name
        self.paths = SimpleNamespace(stderr=Path(f"{name}.err"))


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text(SQUEUE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


@pytest.mark.usefixtures("squeue")
def test_what_squeue_says_and_does_not_say_of_jobs() -> None:
    jobs = [Job("7_0"), Job("7_1"), Job("7_2"), Job("8_0")]
    assert ended(jobs) == {"7_0": "COMPLETED", "7_2": "NODE_FAIL", "8_0": "UNKNOWN"}
    assert ended([*jobs, Job("9_0")]) == {}, "a controller that does not answer tells nothing"
    assert why_waiting(Job("5")) == ("Resources", True)
    assert why_waiting(Job("6")) == ("PartitionConfig", False)
    assert why_waiting(Job("7_1")) == why_waiting(Job("9")) == ("", True)


@pytest.mark.usefixtures("squeue")
def test_no_other_executor_goes_on_beside_tasks_that_still_run(tmp_path: Path, fingerprint: str) -> None:
    plan = make_plan(("sema_tiny",), (224,))
    environment = environment_json(capture())
    run = RunFolder.create(
        tmp_path, "fake", "run", metadata={"suite": {}, "plan": plan.to_json(), "environment": environment}
    )
    (run.path / "slurm").mkdir()
    jobs = [{"job": name, "shard": "a.jsonl", "cells": []} for name in ("7_0", "7_1", "8_0")]
    (run.path / "slurm" / "jobs.json").write_text(json.dumps(jobs))
    assert living_jobs(run.path / "slurm") == ["7_1"]
    with pytest.raises(UsageError, match="still measure run run: 7_1; resume with --executor slurm"):
        Run.resume("run", root=tmp_path, target=RunTarget())


def test_a_task_that_slurm_started_again_measures_only_what_its_shard_lacks(tmp_path: Path, fingerprint: str) -> None:
    plan = make_plan(("good", "good2", "good3"), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    setup = AgentSetup(plan, str(run.path), fingerprint, FAKE_WORKER).to_json()
    cells, _ = group_to_json(plan.cells, {})
    shard = run.path / "records" / "a.jsonl"
    measure_here(setup, code_hash(), cells[:1], {}, str(shard))
    first = shard.read_text()
    shard.write_text(first + '{"schema_version": 1, "cell": {"mod')  # killed in the middle of a line
    measure_here(setup, code_hash(), cells, {}, str(shard))
    assert shard.read_text().startswith(first)
    models = [record.cell.model for record in records_in(shard)]
    assert sorted(models) == ["good", "good2", "good3"]


def test_cells_of_a_lost_node_are_queued_again_and_twice_at_most(tmp_path: Path) -> None:
    plan = make_plan(("good", "good2"), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    executor = slurm_cluster.SlurmTasks(AgentSetup(plan, str(run.path), "x"), None)

    def ends(state: str) -> list[Record]:
        task = slurm_cluster._Task(Job("7_2"), tmp_path / "shard", plan.cells, {})
        return list(executor._again_or_failed(task, state))

    assert ends("NODE_FAIL") == ends("PREEMPTED") == []
    assert [group for group, _ in executor._waiting] == [plan.cells] * 2
    assert [record.status for record in ends("NODE_FAIL")] == ["crashed", "crashed"]
    assert [record.status for record in ends("TIMEOUT")] == ["timeout", "timeout"], "its own fault, and at once"


def test_jobs_of_an_earlier_driver_are_waited_for_and_not_doubled(tmp_path: Path, local: SlurmCluster) -> None:
    plan = make_plan(("good", "good2"), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    (run.path / "slurm").mkdir()
    (run.path / "records").mkdir()
    entry = {"job": "77", "shard": "a.jsonl", "cells": [plan.cells[0].id]}
    (run.path / "slurm" / "jobs.json").write_text(json.dumps([entry, {"job": None, "shard": "b.jsonl", "cells": []}]))
    executor = tasks(local, plan, run, "x")
    executor._waiting = [(plan.cells, {})]
    executor._take_over()
    assert [group for group, _ in executor._waiting] == [plan.cells[1:]]
    (task,) = executor._tasks
    (run.path / "records" / "a.jsonl").write_text(ok_record("good", 224).to_json() + "\n")
    assert [record.cell for record in task.new_records()] == [plan.cells[0]]
    again = slurm_cluster._Task(Job("78"), tmp_path / "none", plan.cells[:1], {})
    again.is_taken_over = True
    assert list(executor._again_or_failed(again, "UNKNOWN")) == []
    assert executor._waiting[-1][0] == plan.cells[:1], "nobody knows how it ended: it is queued anew"
