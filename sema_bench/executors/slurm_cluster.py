"""Cells as an array job of Slurm, by submitit: each group is a task, which writes a shard of records of its own.

The driver reads the shards as they grow. If it dies the tasks go on, and a resumed driver takes up what they have
written and waits for those that still run. ``cluster=local`` runs the tasks as processes of this machine instead.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.environment import capture, environment_from_json, environment_json
from sema_bench.errors import StoreError, UsageError, WorkerError
from sema_bench.executors.agent import Agent, Assignment, group_to_json
from sema_bench.executors.base import Listener
from sema_bench.executors.slurm_states import ended
from sema_bench.interrupts import Interrupted, stop_on_signals
from sema_bench.schema import Cell, Environment, Record
from sema_bench.store import SHARDS, append_line, atomic_write

#: Seconds between two looks at the shards, and at what the scheduler says.
POLL_S, STATE_S = 0.5, 5.0
#: The same while a job that only describes its machine is waited for.
DESCRIBE_S = 2.0
#: A task that its scheduler ended is queued again this often.
MOST_REQUEUES = 2
#: How a job ends that did nothing wrong.
NOT_ITS_FAULT = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED")
#: A file on shared storage may be seen this much later than it was written, in seconds.
LAG_S = 10.0
_JOBS = "jobs.json"


class SlurmCluster:
    """Where ``--executor slurm`` measures.

    Args:
        root: results folder, on storage that the jobs see, too.
        options: of sbatch, without dashes (``partition`` → ``gpu``), empty for a flag; ``cluster=local`` stands for
            this machine.
        jobs: tasks that may run at once; None: as many as Slurm gives.
        models: registry names that are to be measured.
        said: told what is waited for.

    Raises:
        UsageError: submitit or Slurm is not installed, or sbatch refuses the options.
        WorkerError: the job that describes the machines failed.
    """

    def __init__(
        self,
        root: Path,
        options: Mapping[str, str],
        jobs: int | None,
        models: Sequence[str] = (),
        *,
        said: Callable[[str], None],
    ) -> None:
        if importlib.util.find_spec("submitit") is None:
            raise UsageError("--executor slurm needs submitit, which is not installed; pip install 'sema-bench[slurm]'")
        options = dict(options)
        self._cluster = options.pop("cluster", "slurm")
        if self._cluster not in ("slurm", "local"):
            raise UsageError(f"--slurm cluster={self._cluster}: known are slurm and local")
        if self._cluster == "slurm" and shutil.which("sbatch") is None:
            raise UsageError(
                "--executor slurm needs sbatch, which is not on this machine; --slurm cluster=local tries it"
            )
        self._options, self._jobs, self._said = options, jobs, said
        self.environment = self._describe(root, models)

    @property
    def threads(self) -> int:
        return int(self.environment.hardware["cpus"])

    @property
    def lanes(self) -> list[str]:
        return []

    def executor(self, assignment: Assignment, listener: Listener) -> SlurmTasks:
        """Return what measures the cells of a run."""
        folder = Path(assignment.run) / "slurm"
        return SlurmTasks(assignment, self._submitter(folder), folder, said=self._said)

    def close(self) -> None:
        """Nothing is held between runs."""

    def _submitter(self, folder: Path) -> Any:
        import submitit

        submitter = submitit.AutoExecutor(folder=folder / "logs", cluster=self._cluster)
        parameters: dict[str, Any] = {"name": "sema-bench"}
        if self._cluster == "slurm":
            parameters["slurm_additional_parameters"] = {key: value or True for key, value in self._options.items()}
            if self._jobs:
                parameters["slurm_array_parallelism"] = self._jobs
        submitter.update_parameters(**parameters)
        return submitter

    def _describe(self, root: Path, models: Sequence[str]) -> Environment:
        """Ask a job what the machines are that jobs get."""
        folder = root / f".slurm-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
        except OSError as problem:
            raise StoreError(f"cannot write to {root}: {problem.strerror}; choose another folder with --out") from None
        answer = folder / "environment.json"
        try:
            job = _submitted(self._submitter(folder), _describe_here, list(models), str(answer))[0]
            self._said(f"waiting for job {job.job_id}, which tells what machine it gets")
            try:
                states: dict[str, str] = {}
                while not answer.exists() and not (states := ended([job])):
                    time.sleep(DESCRIBE_S)
                _wait_for(answer)
            except BaseException:
                job.cancel(check=False)
                raise
            if not answer.exists():
                raise WorkerError(
                    f"job {job.job_id} ended as {states[str(job.job_id)]} and told nothing; {_last_line(job)}"
                )
            body = json.loads(answer.read_text(encoding="utf-8"))
            if "refused" in body:
                raise UsageError(body["refused"])
            return environment_from_json(body)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class SlurmTasks:
    """An executor that queues every group at once and reads what the tasks write.

    Args:
        assignment: what an agent has to know.
        submitter: of submitit.
        folder: for logs, and for what is queued.
        said: told what is queued.
    """

    width = 2**31

    def __init__(self, assignment: Assignment, submitter: Any, folder: Path, *, said: Callable[[str], None]) -> None:
        self._assignment, self._submitter, self._folder, self._said = assignment, submitter, folder, said
        self._waiting: list[tuple[tuple[Cell, ...], Mapping[Cell, str]]] = []
        self._tasks: list[_Task] = []

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self._waiting.append((tuple(group), skipped))

    def records(self) -> Iterator[Record]:
        self._take_up()
        asked = time.monotonic()
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
        for task in self._tasks:
            task.job.cancel(check=False)
        self._waiting.clear()
        self._tasks.clear()

    def close(self) -> None:
        self.cancel()

    def _queue(self) -> None:
        """Hand what waits to the scheduler, as one array."""
        if not self._waiting:
            return
        groups, self._waiting = self._waiting, []
        shards = [self._shards / f"{secrets.token_hex(6)}.jsonl" for _ in groups]
        calls = [
            (self._assignment.to_json(), *group_to_json(group, skipped), str(shard))
            for (group, skipped), shard in zip(groups, shards, strict=True)
        ]
        jobs = _submitted(self._submitter, measure_here, *calls, each=True)
        for (group, skipped), shard, job in zip(groups, shards, jobs, strict=True):
            self._tasks.append(_Task(job, shard, group, skipped))
        self._remember()
        self._said(f"{len(jobs)} tasks queued as job {str(jobs[0].job_id).partition('_')[0]}")

    @property
    def _shards(self) -> Path:
        return Path(self._assignment.run) / SHARDS

    def _remember(self) -> None:
        """Write down what is queued, for a driver that resumes."""
        body = [{"job": task.job.job_id, "shard": task.shard.name, "cells": list(task.owed)} for task in self._tasks]
        atomic_write(self._folder / _JOBS, json.dumps(body) + "\n")

    def _take_up(self) -> None:
        """Wait for the jobs of an earlier driver where they still live, in place of queueing their cells again."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            before = json.loads((self._folder / _JOBS).read_text(encoding="utf-8"))
            wanted = {cell.id: cell for group, _ in self._waiting for cell in group}
            for body in before:
                job = _job(self._submitter, body["job"])
                cells = tuple(wanted[key] for key in body["cells"] if key in wanted)
                if cells and not ended([job]):
                    self._tasks.append(_Task(job, self._shards / Path(body["shard"]).name, cells, {}))
            taken = {cell for task in self._tasks for cell in task.owed.values()}
            self._waiting = [
                (left, skipped)
                for group, skipped in self._waiting
                if (left := tuple(cell for cell in group if cell not in taken))
            ]
            if taken:
                self._said(f"waiting for {len(taken)} cells that jobs of this run still measure")

    def _again_or_failed(self, task: _Task, state: str) -> Iterator[Record]:
        """Queue the rest of a task again if its machine let it down; yield what became of its cells if not."""
        cells, task.owed = tuple(task.owed.values()), {}
        if state.startswith(NOT_ITS_FAULT) and task.requeues < MOST_REQUEUES:
            self._waiting.append((cells, task.skipped))
            self._queue()
            self._tasks[-1].requeues = task.requeues + 1
            return
        reason = f"job {task.job.job_id} ended as {state}; {_last_line(task.job)}"
        for cell in cells:
            yield Record(cell=cell, status="timeout" if state.startswith("TIMEOUT") else "crashed", reason=reason)


class _Task:
    """A queued group: its job, its shard, and the cells that it still owes."""

    def __init__(self, job: Any, shard: Path, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self.job, self.shard, self.skipped = job, shard, skipped
        self.owed = {cell.id: cell for cell in group}
        self.requeues = 0
        self._read = 0

    def new_records(self) -> Iterator[Record]:
        """Yield what the shard holds and was not read yet; a line without its end is left for the next time."""
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


def measure_here(assignment: str, group: Sequence[Mapping[str, Any]], skipped: Mapping[str, str], shard: str) -> None:
    """Run in a task: measure a group and add each record to the shard at once.

    SIGTERM, with which schedulers announce the end, stops the workers and leaves what is finished.
    """
    body = Assignment.from_json(assignment)
    here = capture()
    node = os.uname().nodename
    path = Path(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    if here.fingerprint != body.environment:
        why = (
            f"job ran on {node}, whose hardware or software is not that of the run; "
            "constrain the jobs (--slurm constraint=…), then --resume with --retry-failed"
        )
        for cell in group:
            append_line(path, Record(cell=Cell(**cell), status="error", reason=why).to_json(), sync=True)
        return
    agent = Agent(assignment, node)
    try:
        with stop_on_signals():
            for record in agent.measure(group, skipped):
                append_line(path, record, sync=True)
    except Interrupted as stop:
        raise SystemExit(stop.exit_code) from None
    finally:
        agent.stop()


def _describe_here(models: Sequence[str], path: str) -> None:
    """Run in a task: write down the environment."""
    try:
        body = environment_json(capture(models))
    except UsageError as problem:
        body = {"refused": str(problem)}
    atomic_write(Path(path), json.dumps(body))


def _submitted(submitter: Any, function: Callable[..., None], *arguments: Any, each: bool = False) -> list[Any]:
    """Submit one call, or one for each of ``arguments`` as an array.

    Raises:
        UsageError: the scheduler refuses.
    """
    import submitit

    try:
        if not each:
            return [submitter.submit(function, *arguments)]
        with submitter.batch():
            return [submitter.submit(function, *one) for one in arguments]
    except (submitit.core.utils.FailedJobError, OSError) as problem:
        said = str(problem).strip().splitlines()
        raise UsageError(f"Slurm refuses the job: {said[-1] if said else problem}") from None


def _job(submitter: Any, name: str) -> Any:
    """Return a job by its number."""
    if type(submitter._executor).__name__ == "LocalExecutor":
        from submitit.local.local import LocalJob

        return LocalJob(folder=submitter.folder, job_id=name)
    from submitit import SlurmJob

    return SlurmJob(folder=submitter.folder, job_id=name)


def _wait_for(path: Path) -> None:
    """Give shared storage time to show a file."""
    until = time.monotonic() + LAG_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(POLL_S)


def _last_line(job: Any) -> str:
    """Return where the log of a job is, and its last line."""
    with contextlib.suppress(OSError):
        lines = Path(job.paths.stderr).read_text(errors="replace").strip().splitlines()
        if lines:
            return f"{job.paths.stderr}: {lines[-1]}"
    return f"its log is {job.paths.stderr}"
