"""Measure cells in a Slurm array job, with submitit: each group is a task, which writes its own shard of records.

The driver reads the shards as they grow. If it dies the tasks continue; a resumed driver reads their records, and
waits for tasks that still run. ``cluster=local`` runs the tasks as processes of this machine instead.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.local.local import LocalJob

from sema_bench.cluster.agent import AgentSetup, group_to_json
from sema_bench.cluster.slurm_states import JOBS, ended, why_waiting
from sema_bench.cluster.slurm_task import describe_here, measure_here
from sema_bench.driver.executor import Group, Listener
from sema_bench.errors import StoreError, UsageError, WorkerError
from sema_bench.machine.environment import code_hash, environment_from_json
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Environment, Record
from sema_bench.store.files import utc_now, write_own
from sema_bench.store.run_folder import SHARDS
from sema_bench.text.console import tell

#: Seconds between two reads of the shards, and of the job states.
POLL_S, STATE_S = 0.5, 5.0
#: The same while waiting for the job that describes its machine.
DESCRIBE_S = 2.0
#: A task that its scheduler ended is queued again at most this often.
MOST_REQUEUES = 2
#: States of a job that ended through no fault of its own.
NOT_ITS_FAULT = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED")
#: Seconds that a written file may take to appear on shared storage.
LAG_S = 10.0
#: Time limit of a task without the option ``time``, and most tasks in one array: clusters allow 1001 by default.
DEFAULT_MINUTES, MOST_TASKS = 240, 500


class SlurmCluster:
    """The machines that Slurm gives, for ``--executor slurm``.

    Args:
        root: results folder, on storage that the jobs also see.
        options: options of sbatch, without dashes (``partition`` → ``gpu``), empty for a flag; ``cluster=local`` stands
            for this machine.
        jobs: tasks that may run at once; None: as many as Slurm gives.
        models: registry names to measure.
    """

    def __init__(self, root: Path, options: Mapping[str, str], jobs: int | None, models: Sequence[str] = ()) -> None:
        options = dict(options)
        self._cluster = options.pop("cluster", "slurm")
        if self._cluster not in ("slurm", "local"):
            raise UsageError(f"--slurm cluster={self._cluster}: expected slurm or local")
        if self._cluster == "slurm" and shutil.which("sbatch") is None:
            raise UsageError(
                "--executor slurm needs sbatch, which is not installed here; to try it out, use --slurm cluster=local"
            )
        self._options, self._jobs = options, jobs
        self._granted: int | None = None
        self.environment = self._describe(root, models)

    @property
    def threads(self) -> int:
        return self._granted or int(self.environment.hardware["cpus"])

    @property
    def lanes(self) -> list[str]:
        return []

    def executor(self, plan: Plan, run: Path, listener: Listener, worker_command: Sequence[str] = ()) -> SlurmTasks:
        setup = AgentSetup(plan, str(run), self.environment.fingerprint, tuple(worker_command))
        return SlurmTasks(setup, self._submitter(run / "slurm"))

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _submitter(self, folder: Path) -> Any:
        submitter = submitit.AutoExecutor(folder=folder / "logs", cluster=self._cluster)
        parameters: dict[str, Any] = {"name": "sema-bench", "timeout_min": DEFAULT_MINUTES}
        if self._cluster == "slurm":
            options = {key: value or True for key, value in self._options.items()}
            # A task that Slurm restarts would repeat the records of its shard. Without srun a task has all CPUs of its
            # job: srun of Slurm 22.05 and later does not inherit cpus-per-task.
            parameters["slurm_additional_parameters"] = {"no-requeue": True, **options}
            parameters["slurm_use_srun"] = False
            parameters["slurm_array_parallelism"] = self._jobs or MOST_TASKS
        submitter.update_parameters(**parameters)
        return submitter

    def _describe(self, root: Path, models: Sequence[str]) -> Environment:
        """Run a job that captures the environment of the machines that jobs get."""
        folder = root / f".slurm-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
        except OSError as problem:
            raise StoreError(f"cannot write to {root}: {problem.strerror}; choose another folder with --out") from None
        answer = folder / "environment.json"
        try:
            job = _submitted(self._submitter(folder), describe_here, list(models), str(answer))[0]
            tell(f"waiting for job {job.job_id}, which describes its machine")
            try:
                states: dict[str, str] = {}
                shown = ""
                while not answer.exists() and not (states := ended([job])):
                    reason, can_end = why_waiting(job)
                    if not can_end:
                        raise UsageError(f"Slurm will never start this job ({reason}); change the options of --slurm")
                    if reason and reason != shown:
                        tell(f"job {job.job_id} is pending: {reason}")
                        shown = reason
                    time.sleep(DESCRIBE_S)
                _wait_for(answer)
            except BaseException:
                job.cancel(check=False)
                tell(f"cancelled job {job.job_id}")
                raise
            if not answer.exists():
                state = states[str(job.job_id)]
                raise WorkerError(
                    f"job {job.job_id} ended as {state} before it described its machine; {_last_line(job)}"
                )
            body = json.loads(answer.read_text(encoding="utf-8"))
            if "refused" in body:
                raise UsageError(body["refused"])
            self._granted = body.pop("granted_cpus", None)
            environment = environment_from_json(body)
            if self._granted and self._granted < (cpus := int(environment.hardware["cpus"])):
                tell(f"jobs get {self._granted} of {cpus} CPUs; request more with --slurm cpus-per-task=N")
            if environment.context.get("code") != code_hash():
                raise UsageError(
                    "jobs run another version of sema-bench than this one; install the same one everywhere"
                )
            return environment
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class SlurmTasks:
    """An executor that queues every group at once, with submitit, and reads the records of the tasks."""

    def __init__(self, setup: AgentSetup, submitter: Any) -> None:
        self._setup, self._submitter, self._code = setup, submitter, code_hash()
        self._jobs, self._shards = Path(setup.run) / "slurm" / JOBS, Path(setup.run) / SHARDS
        self._waiting: list[Group] = []
        self._tasks: list[_Task] = []
        self._losses: Counter[str] = Counter()

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        self._waiting += groups
        self._take_over()
        asked = -math.inf
        while self._waiting or self._tasks:
            self._queue()
            states = {}
            if time.monotonic() - asked > STATE_S:
                asked, states = time.monotonic(), ended([task.job for task in self._tasks])
            for task in list(self._tasks):
                yield from task.new_records()
                if task.owed and (state := states.get(str(task.job.job_id))):
                    _wait_for(task.shard)
                    yield from task.new_records()
                    yield from self._again_or_failed(task, state)
                if not task.owed:
                    self._tasks.remove(task)
                    self._remember()
            if self._tasks:
                time.sleep(POLL_S)

    def cancel(self) -> None:
        queued = [task.job for task in self._tasks if task.job is not None]
        for job in queued:
            job.cancel(check=False)
        if queued:
            tell(f"cancelled {len(queued)} tasks of job {str(queued[0].job_id).partition('_')[0]}")
        self._waiting.clear()
        if self._tasks:
            self._tasks.clear()
            with contextlib.suppress(StoreError):
                self._remember()

    def close(self) -> None:
        self.cancel()

    def _queue(self) -> None:
        """Submit the waiting groups as one array."""
        if not self._waiting:
            return
        groups, self._waiting = self._waiting[:MOST_TASKS], self._waiting[MOST_TASKS:]
        tasks = [
            _Task(None, self._shards / f"{secrets.token_hex(6)}.jsonl", group, skipped) for group, skipped in groups
        ]
        self._tasks += tasks
        self._remember()  # first: if the driver is killed before it submits all, the shards are known
        calls = [
            (self._setup.to_json(), self._code, *group_to_json(group, skipped), str(task.shard))
            for (group, skipped), task in zip(groups, tasks, strict=True)
        ]
        for task, job in zip(tasks, _submitted(self._submitter, measure_here, *calls, each=True), strict=True):
            task.job = job
        self._remember()
        tell(f"queued {len(tasks)} tasks as job {str(tasks[0].job.job_id).partition('_')[0]}")

    def _remember(self) -> None:
        """Write the queued jobs to a file, for a driver that resumes."""
        body = [
            {"job": task.job and task.job.job_id, "shard": task.shard.name, "cells": list(task.owed)}
            for task in self._tasks
        ]
        write_own(self._jobs, json.dumps(body) + "\n")

    def _take_over(self) -> None:
        """Take over the jobs of an earlier driver; unfinished cells of jobs that have ended are queued again."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads(self._jobs.read_text(encoding="utf-8"))
            wanted = {cell.id: cell for group, _ in self._waiting for cell in group}
            for body in before:
                cells = tuple(wanted[key] for key in body["cells"] if key in wanted)
                if cells and body["job"]:
                    job = _job(self._submitter, body["job"])
                    task = _Task(job, self._shards / Path(body["shard"]).name, cells, {})
                    task.is_taken_over = True
                    self._tasks.append(task)
            taken = {cell for task in self._tasks for cell in task.owed.values()}
            self._waiting = [
                (left, skipped)
                for group, skipped in self._waiting
                if (left := tuple(cell for cell in group if cell not in taken))
            ]
            if taken:
                tell(f"jobs of an earlier driver still measure {len(taken)} cells")

    def _again_or_failed(self, task: _Task, state: str) -> Iterator[Record]:
        """Queue the rest of a task again if its machine failed; otherwise yield records of its cells."""
        cells, task.owed = tuple(task.owed.values()), {}
        losses = 1 + max(self._losses[cell.id] for cell in cells)
        if task.is_taken_over or (state.startswith(NOT_ITS_FAULT) and losses <= MOST_REQUEUES):
            if not task.is_taken_over:  # how an earlier driver's job ended is unknown
                self._losses.update(cell.id for cell in cells)
            self._waiting.append((cells, task.skipped))
            return
        reason = f"job {task.job.job_id} ended as {state}; {_last_line(task.job)}"
        status = "timeout" if state.startswith("TIMEOUT") else "crashed"
        for cell in cells:
            yield Record(cell=cell, status=status, reason=reason, started_at=utc_now())


class _Task:
    """A queued group: its job, its shard, and its cells without a record."""

    def __init__(self, job: Any, shard: Path, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self.job, self.shard, self.skipped = job, shard, skipped
        self.owed = {cell.id: cell for cell in group}
        self.is_taken_over = False
        self._read = 0

    def new_records(self) -> Iterator[Record]:
        """Yield the records added to the shard since the last call; leave an unfinished line for the next call."""
        with contextlib.suppress(FileNotFoundError), self.shard.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                with contextlib.suppress(ValueError):
                    record = Record.from_json(line)
                    if self.owed.pop(record.cell.id, None):
                        yield record


def _submitted(submitter: Any, function: Callable[..., None], *arguments: Any, each: bool = False) -> list[Any]:
    """Submit one call, or one for ``each`` of ``arguments`` as an array; raise UsageError if Slurm refuses."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit repeats the error there
            if not each:
                return [submitter.submit(function, *arguments)]
            with submitter.batch():
                return [submitter.submit(function, *one) for one in arguments]
    except (FailedJobError, OSError) as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        reasons = [line for line in lines if line.startswith("sbatch: ")] or lines[-1:]
        raise UsageError(f"Slurm refuses the job: {'; '.join(reasons)}") from None


def _job(submitter: Any, name: str) -> Any:
    is_local = type(submitter._executor).__name__ == "LocalExecutor"
    return (LocalJob if is_local else submitit.SlurmJob)(folder=submitter.folder, job_id=name)


def _wait_for(path: Path) -> None:
    """Give shared storage time to show a file."""
    until = time.monotonic() + LAG_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(POLL_S)


def _last_line(job: Any) -> str:
    """Name the log of a job, and quote its last line."""
    with contextlib.suppress(OSError):
        lines = Path(job.paths.stderr).read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{job.paths.stderr}: {lines[-1]}"
    return f"its log is {job.paths.stderr}"
