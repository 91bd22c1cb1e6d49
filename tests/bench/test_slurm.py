"""An array job by submitit, here with its executor that runs tasks as processes of this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import psutil
import pytest
from run_support import FAKE_WORKER, make_plan, quiet_progress

from sema_bench.environment import capture
from sema_bench.errors import UsageError
from sema_bench.executors.agent import Assignment
from sema_bench.executors.slurm_cluster import SlurmCluster, SlurmTasks
from sema_bench.executors.slurm_states import ended
from sema_bench.plan import Plan
from sema_bench.runner import run_plan
from sema_bench.schema import Record
from sema_bench.store import RunFolder

pytest.importorskip("submitit", reason="needs submitit: pip install 'sema-bench[slurm]'")


@pytest.fixture(scope="module")
def fingerprint() -> str:
    return capture().fingerprint


@pytest.fixture
def local() -> SlurmCluster:
    """A cluster whose machines need not be asked."""
    cluster = SlurmCluster.__new__(SlurmCluster)
    cluster._cluster, cluster._options, cluster._jobs, cluster._said = "local", {}, None, lambda message: None
    return cluster


def tasks(cluster: SlurmCluster, plan: Plan, run: RunFolder, fingerprint: str) -> SlurmTasks:
    assignment = dataclasses.replace(Assignment.of(plan, run.path, fingerprint, FAKE_WORKER), yardstick=None)
    return cluster.executor(assignment, lambda cell, phase: None)


def test_each_group_is_a_task_with_a_shard_of_its_own(tmp_path: Path, local: SlurmCluster, fingerprint: str) -> None:
    plan = make_plan(("good", "error"), (224, 256))
    run = RunFolder.create(tmp_path, "fake", "run")
    with run.lock():
        executor = tasks(local, plan, run, fingerprint)
        records = run_plan(plan, run, executor, environment=fingerprint, progress=quiet_progress())
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
    orphan.submit(plan.cells, {})
    orphan._queue()
    while not ended([orphan._tasks[0].job]):
        time.sleep(0.1)
    assert {record.cell.model for record in run.records()} == {"good", "good2"}, "readers merge the shards"
    with run.lock():
        executor = tasks(local, plan, run, fingerprint)
        progress = quiet_progress()
        run_plan(plan, run, executor, environment=fingerprint, progress=progress)
    assert progress.missing == 0


def test_a_task_that_was_killed_leaves_what_it_finished_and_a_reason(
    tmp_path: Path, local: SlurmCluster, fingerprint: str
) -> None:
    plan = make_plan(("good", "hang"), (224,), time_limit_s=60)
    run = RunFolder.create(tmp_path, "fake", "run")
    executor = tasks(local, plan, run, fingerprint)
    executor.submit(plan.cells[:1], {})
    executor.submit(plan.cells[1:], {})
    found: list[Record] = []
    for record in executor.records():
        found.append(record)
        if len(found) == 1:
            assert record.cell.model == "good"
            task = psutil.Process(executor._tasks[-1].job._process.pid)
            for process in (task, *task.children(recursive=True)):
                process.kill()
    assert [record.status for record in found] == ["ok", "crashed"]
    assert "ended as INTERRUPTED" in found[1].reason
    assert str(run.path / "slurm") in found[1].reason, "where the log is"


def test_a_task_on_another_kind_of_machine_measures_nothing(tmp_path: Path, local: SlurmCluster) -> None:
    plan = make_plan(("good",), (224,))
    run = RunFolder.create(tmp_path, "fake", "run")
    executor = tasks(local, plan, run, "anotherkind1")
    executor.submit(plan.cells, {})
    (record,) = executor.records()
    assert record.status == "error"
    assert "--slurm constraint=" in record.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "needs sbatch"), ({"cluster": "moon"}, "known are slurm and local")],
)
def test_a_machine_without_slurm_is_told(
    tmp_path: Path, options: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=words):
        SlurmCluster(tmp_path, options, None, said=lambda message: None)


SQUEUE = """#!/bin/sh
case "$*" in
  *--jobs=7*) printf '7_0 COMPLETED\n7_1 RUNNING\n7_2 NODE_FAIL\n' ;;
  *--jobs=8*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;
  *) echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1 ;;
esac
"""


class Job:
    def __init__(self, name: str) -> None:
        self.job_id = name


def test_what_squeue_says_and_does_not_say_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text(SQUEUE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = [Job("7_0"), Job("7_1"), Job("7_2"), Job("8_0")]
    assert ended(jobs) == {"7_0": "COMPLETED", "7_2": "NODE_FAIL", "8_0": "UNKNOWN"}
    assert ended([*jobs, Job("9_0")]) == {}, "a controller that does not answer tells nothing"
