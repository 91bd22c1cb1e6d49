"""One run from start to end: environment, plan, workers, records, tables and plots."""

from __future__ import annotations

import functools
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sema_bench import __version__
from sema_bench.data.opened import TestImages
from sema_bench.data.spec import parse_data
from sema_bench.environment import (
    capture,
    check_threads,
    default_threads,
    environment_from_json,
    environment_json,
    resolve_device,
)
from sema_bench.errors import StoreError, UsageError
from sema_bench.executors.local import LocalExecutor
from sema_bench.executors.peaks import measure_in_worker
from sema_bench.interrupts import Interrupted
from sema_bench.model_source import parse_source
from sema_bench.peak_book import PeakBook
from sema_bench.plan import Plan, build_plan
from sema_bench.progress import ProgressDisplay, warn
from sema_bench.report.folder import write_outputs
from sema_bench.runner import run_plan
from sema_bench.schema import SCHEMA_VERSION, Cell, Environment, Record
from sema_bench.store import RunFolder, check_run_name, utc_now
from sema_bench.suite import Suite
from sema_bench.training.campaign import train_what_is_missing, why_it_failed
from sema_bench.weights_source import trained_seed, weights_path
from sema_bench.worker_process import CellFailure

#: Tables and plots of an unfinished run may take this share of its time.
WRITING_SHARE = 0.05


def plan_without_torch(suite: Suite) -> Plan:
    """Return the plan of ``suite`` for this machine as far as NVML tells, in milliseconds."""
    return build_plan(suite, device=resolve_device(suite.device), threads=default_threads())


def start(
    suite: Suite, root: Path, *, name: str | None, skip: bool, worker_command: Sequence[str] = ()
) -> list[Record]:
    """Run ``suite`` into a new folder of ``root``; return the record of every cell.

    Raises:
        UsageError: the device is not there, or the run's name is taken.
        StoreError: the folder cannot be written.
    """
    _check_working_folder()
    plan_without_torch(suite)  # a bad request fails before anything is started
    check_threads(suite.threads or ())
    if name is not None:
        check_run_name(name)
    if "accuracy" in suite.probes:
        for data in suite.data or []:  # what is not there is found now, not cell by cell
            TestImages(parse_data(data))
    sources = [parse_source(model) for model in suite.models]
    environment = capture([source.name for source in sources if source.kind == "registry"])
    plan = build_plan(suite, device=resolve_device(suite.device, environment), threads=default_threads())
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "sema_bench": __version__,
        "command": shlex.join(["sema-bench", *sys.argv[1:]]),
        "created_at": utc_now(),
        "suite": suite.model_dump(),
        "plan": plan.to_json(),
        "environment": environment_json(environment),
    }
    run = RunFolder.create(root, plan.suite, name, metadata=metadata)
    with run.lock():
        return _execute(plan, run, environment, skip=skip, retry_failed=False, worker_command=worker_command)


def resume(
    root: Path, name: str, *, skip: bool, retry_failed: bool, worker_command: Sequence[str] = ()
) -> list[Record]:
    """Finish the run ``name`` of ``root``; return the record of every cell. Nothing that is ``ok`` is measured again.

    Raises:
        UsageError: there is no such run, another process holds it, or this machine is not the one it was measured on.
    """
    _check_working_folder()
    run = RunFolder.open(root, name)
    metadata = run.metadata()
    if "plan" not in metadata and metadata.get("suite") is None:
        if "training" in metadata:
            raise UsageError(f"run {run.name} is a training; go on with sema-bench train --resume {run.name}")
        raise UsageError(f"run {run.name} has no cells to go on with; start it anew")
    try:
        plan = Plan.from_json(metadata["plan"])
        before = environment_from_json(metadata["environment"])
        before_fingerprint = before.fingerprint
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{run.path / 'run.json'} is not complete; start a new run") from None
    with run.lock():
        environment = capture()
        if environment.fingerprint != before_fingerprint:
            raise UsageError(
                f"run {run.name} was measured in another environment ({_difference(before, environment)}); "
                "start a new run, and compare the two"
            )
        if environment.context.get("code") != before.context.get("code"):
            raise UsageError(
                f"run {run.name} was measured with other code (commit {before.context.get('commit')} then, "
                f"{environment.context.get('commit')} now); go back to it, or start a new run and compare the two"
            )
        kept = run.quarantine()
        if kept:
            warn(f"records.jsonl had lines that are not records; the file as it was is kept as {kept.name}")
        return _execute(plan, run, environment, skip=skip, retry_failed=retry_failed, worker_command=worker_command)


def _execute(
    plan: Plan,
    run: RunFolder,
    environment: Environment,
    *,
    skip: bool,
    retry_failed: bool,
    worker_command: Sequence[str],
) -> list[Record]:
    unwritten: list[StoreError] = []
    written_at, writing_took = -math.inf, 0.0

    def write(records: list[Record]) -> None:
        """Tables and plots can be made again; a failure here costs no measurement."""
        nonlocal written_at, writing_took
        unwritten.clear()
        started = time.monotonic()
        try:
            write_outputs(run.path, records)
        except StoreError as problem:
            unwritten.append(problem)
            warn(str(problem))
        written_at = time.monotonic()
        writing_took = written_at - started

    def write_now_and_then(records: list[Record]) -> None:
        if time.monotonic() - written_at > writing_took / WRITING_SHARE:
            write(records)

    with ProgressDisplay() as progress:
        progress.say(f"run {run.path}")
        if plan.cells[0].device == "meta":
            progress.say(f"device meta: nothing is run, only {', '.join(plan.probes)} are taken from shapes")
        executor = LocalExecutor(
            probes=plan.probes,
            sampling=plan.sampling,
            yardstick=plan.yardstick,
            evaluation=plan.evaluation,
            bookmarks=run.path / "unfinished",
            weights_of=functools.partial(_weights_of, run.path),
            peaks=PeakBook(environment.fingerprint, measure_in_worker(worker_command)),
            listener=progress.phase,
            worker_command=worker_command,
        )
        try:
            train_what_is_missing(plan, run, progress=progress, retry_failed=retry_failed)
            records = run_plan(
                plan,
                run,
                executor,
                environment=environment.fingerprint,
                progress=progress,
                after_group=write_now_and_then,
                skip=skip,
                retry_failed=retry_failed,
            )
        except Interrupted:
            executor.cancel()
            again = shlex.join(["sema-bench", "run", "--out", str(run.path.parent), "--resume", run.name])
            progress.say(f"stopped; finished cells are kept. Go on with: {again}")
            raise
        except BaseException:
            executor.cancel()
            raise
        executor.close()
        write(records)
        if unwritten:
            raise unwritten[0]
        progress.say(f"written to {run.path}")
        if failed := sum(record.status in ("timeout", "crashed", "error") for record in records):
            again = shlex.join(["sema-bench", "run", "--out", str(run.path.parent), "--resume", run.name])
            progress.say(
                f"{failed} of {len(records)} cells did not end well; to try them again: {again} --retry-failed"
            )
        return records


def _weights_of(run: Path, cell: Cell) -> Path | None:
    """Return the file with the weights of ``cell``.

    Raises:
        CellFailure: there is none.
    """
    try:
        path = weights_path(run, cell)
    except UsageError as problem:
        raise CellFailure("error", str(problem), worker_lost=False) from None
    if path is not None and trained_seed(cell.weights) is not None and not path.exists():
        raise CellFailure("error", f"its training failed: {why_it_failed(path.parent)}", worker_lost=False)
    return path


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder is gone; go to another one") from None


def _difference(before: Environment, now: Environment) -> str:
    """Name the first few facts in which two environments differ."""
    parts = []
    for old, new in ((before.hardware, now.hardware), (before.software, now.software)):
        parts += [
            f"{key}: {old.get(key)} then, {new.get(key)} now"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    return "; ".join(parts[:3])
