"""One run from start to end: environment, plan, workers, records, tables and plots."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench import __version__
from sema_bench.cluster.agent import Assignment
from sema_bench.cluster.backends import Backend, open_backend
from sema_bench.cluster.slurm_states import living_jobs
from sema_bench.data.datasets import TestImages
from sema_bench.driver.memory_fit import unfit as unfit_cells
from sema_bench.driver.schedule import run_plan
from sema_bench.errors import StoreError, UsageError
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.device_memory import total_bytes
from sema_bench.machine.devices import resolve_device
from sema_bench.machine.environment import check_models, environment_from_json, environment_json
from sema_bench.machine.interrupts import Interrupted
from sema_bench.report.folder import write_outputs
from sema_bench.report.progress import ProgressDisplay
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_code import MODEL_FILES, file_digest
from sema_bench.spec.model_source import PACKAGES, check_packages, packages_of, parse_source
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.record import SCHEMA_VERSION, Environment, Record
from sema_bench.spec.suite import Suite
from sema_bench.spec.target import RunTarget
from sema_bench.store.files import utc_now
from sema_bench.store.remote import RemoteResults
from sema_bench.store.run_folder import RunFolder, check_free, check_run_name
from sema_bench.text.console import tell, warn
from sema_bench.training.train_suite import train_what_is_missing

#: Tables and plots of an unfinished run may take this share of its time.
WRITING_SHARE = 0.05


def plan_without_torch(suite: Suite) -> Plan:
    """Return the plan of ``suite`` for this machine as far as NVML tells, in milliseconds."""
    return build_plan(suite, device=resolve_device(suite.device), threads=default_threads())


def checked_plan(suite: Suite) -> Plan:
    """Return the plan of ``suite`` for this machine, after models whose names set options were built without memory.

    Raises:
        UsageError: one of them cannot be built as named.
    """
    check_threads(suite.threads or ())
    plan = plan_without_torch(suite)
    names = dict.fromkeys(cell.model for cell in plan.cells)
    check_models([name for name in names if parse_source(name).needs_trial])
    return plan


def plan_for(suite: Suite, backend: Backend) -> Plan:
    """Return the plan of ``suite`` for the machines of ``site``.

    Raises:
        UsageError: they do not have what it asks for.
    """
    check_threads(suite.threads or (), backend.threads)
    return build_plan(suite, device=resolve_device(suite.device, backend.environment), threads=backend.threads)


def room_of(backend: Backend, plan: Plan) -> int | None:
    """Return the memory in bytes of one device of ``site``; None where nobody can tell."""
    return total_bytes(backend.environment, plan.cells[0].device)


def without_room(plan: Plan, cells: Sequence[Cell], room: int | None) -> Mapping[Cell, str]:
    """Return cell → reason for those of ``cells`` that no worker with ``room`` bytes can run."""
    return {} if room is None else unfit_cells(plan, cells, room)


def start(
    suite: Suite,
    root: Path,
    *,
    name: str | None,
    skip: bool,
    target: RunTarget = RunTarget(),  # noqa: B008 - frozen
    remote: RemoteResults | None = None,
    worker_command: Sequence[str] = (),
) -> list[Record]:
    """Run ``suite`` into a new folder of ``root``, or of ``remote``; return the record of every cell.

    Raises:
        UsageError: the device is not there, or the run's name is taken.
        StoreError: the folder cannot be written.
    """
    _check_working_folder()
    if target.executor == "local":
        plan_without_torch(suite)  # a bad request fails before anything is started
    if name is not None:
        check_run_name(name)
    if target.executor != "local" and suite.training:
        raise UsageError(
            f"suite {suite.name!r} trains before it tests, which runs on this machine alone; use --executor local"
        )
    if "accuracy" in suite.probes:
        for data in suite.data or []:  # what is not there is found now, not cell by cell
            for note in TestImages(parse_data(data)).notes:
                warn(note)
    sources = [parse_source(model) for model in suite.models]
    names = [source.name for source in sources if source.kind == "registry" or source.needs_trial]
    out = remote.url if remote else str(root)
    if remote is not None:
        root = remote.root
        if name is not None and name in remote.names():
            raise UsageError(f"run {name!r} exists already in {remote.url}; resume it or choose another name")
        remote.check_writable()
    else:
        check_free(root, name)  # a cluster is not asked for nothing
    with _backend(target, root, suite.device, names) as backend:
        plan = plan_for(suite, backend)
        metadata = {
            "schema_version": SCHEMA_VERSION,
            "sema_bench": __version__,
            "command": shlex.join(["sema-bench", *sys.argv[1:]]),
            "created_at": utc_now(),
            "suite": suite.model_dump(),
            "plan": plan.to_json(),
            "where": dataclasses.asdict(target),
            PACKAGES: packages_of(source.name for source in sources),
            "environment": environment_json(backend.environment),
        }
        run = RunFolder.create(root, plan.suite, name, metadata=metadata)
        with _held(run, remote):
            return _execute(
                plan, run, backend, target, out, skip=skip, retry_failed=False, worker_command=worker_command
            )


def resume(
    root: Path,
    name: str,
    *,
    skip: bool,
    retry_failed: bool,
    target: RunTarget | None = None,
    remote: RemoteResults | None = None,
    worker_command: Sequence[str] = (),
) -> list[Record]:
    """Finish the run ``name`` of ``root``, or of ``remote``; return the record of every cell.

    Nothing that is ``ok`` is measured again. It goes on where it was begun, unless ``where`` says otherwise.

    Raises:
        UsageError: there is no such run, another process holds it, or this machine is not the one it was measured on.
    """
    _check_working_folder()
    out = remote.url if remote else str(root)
    if remote is not None:
        remote.pull(name)
        root = remote.root
        if not (root / name / "run.json").is_file():
            raise UsageError(
                f"no run {name!r} in {remote.url}; sema-bench history --out {remote.url} lists those there"
            )
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
        target = target or _target_from_json(metadata.get("where", {}))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StoreError(f"{run.path / 'run.json'} is not complete; start a new run") from None
    _check_code(plan, run, metadata)
    if jobs := living_jobs(run.path / "slurm"):
        still = f"run {run.name} is still measured by Slurm's jobs {', '.join(jobs[:3])}"
        if target.executor != "slurm":
            raise UsageError(f"{still}; go on with --executor slurm, or scancel them first")
        tell(f"{still}; what they finish counts")
    if target.executor != "local" and not retry_failed and (records := _complete(plan, run, skip=skip)):
        write_outputs(run.path, records)  # a cluster is not asked for nothing
        tell(f"all {len(records)} cells of {run.name} are done")
        return records
    with _held(run, remote), _backend(target, root, plan.cells[0].device, (), before_fingerprint) as backend:
        environment = backend.environment
        if environment.fingerprint != before_fingerprint:
            raise UsageError(
                f"run {run.name} was measured in another environment ({_difference(before, environment)}); "
                "start a new run, and compare the two"
            )
        if environment.context.get("code") != before.context.get("code"):
            raise UsageError(
                f"run {run.name} was measured with other code of sema-bench ({_commits(before, environment)}); "
                "go back to it, or start a new run and compare the two"
            )
        kept = run.quarantine()
        if kept:
            warn(f"records.jsonl had lines that are not records; the file as it was is kept as {kept.name}")
        return _execute(
            plan, run, backend, target, out, skip=skip, retry_failed=retry_failed, worker_command=worker_command
        )


def _complete(plan: Plan, run: RunFolder, *, skip: bool) -> list[Record]:
    """Return the record of every cell of ``plan``; nothing where one is missing, or was skipped and is not to be."""
    found = {record.cell.id: record for record in run.records() if skip or record.status != "skipped"}
    return [found[cell.id] for cell in plan.cells] if all(cell.id in found for cell in plan.cells) else []


def _execute(
    plan: Plan,
    run: RunFolder,
    backend: Backend,
    target: RunTarget,
    out: str,
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

    def write_now_and_then(records: Callable[[], list[Record]]) -> None:
        if executor.width > 1:  # drawing here would be felt by what is timed meanwhile
            return
        if time.monotonic() - written_at > writing_took / WRITING_SHARE:
            write(records())

    with ProgressDisplay() as progress:
        place = f"{out}/{run.name}" if "://" in out else str(run.path)
        progress.say(f"run {place}")
        if target.executor == "ray" or target.devices:
            progress.say(f"measured on {', '.join(backend.lanes)}")
        if plan.cells[0].device == "meta":
            progress.say(f"device meta: nothing is run, only {', '.join(plan.probes)} are taken from shapes")
        fingerprint, room = backend.environment.fingerprint, room_of(backend, plan)

        def unfit(cells: Sequence[Cell]) -> Mapping[Cell, str]:
            if target.executor == "local" or not cells:  # here a size that runs out tells of the larger ones
                return {}
            progress.say("predicting what fits into memory")
            return without_room(plan, cells, room)

        executor = backend.executor(Assignment.of(plan, run.path, fingerprint, worker_command), progress.phase)
        try:
            train_what_is_missing(plan, run, progress=progress, retry_failed=retry_failed)
            records = run_plan(
                plan,
                run,
                executor,
                environment=fingerprint,
                progress=progress,
                after_group=write_now_and_then,
                unfit=unfit,
                skip=skip,
                retry_failed=retry_failed,
            )
        except Interrupted:
            executor.cancel()
            again = shlex.join(["sema-bench", "run", "--out", out, "--resume", run.name])
            progress.say(f"stopped; what was finished is kept. Go on with: {again}")
            raise
        except BaseException:
            executor.cancel()
            raise
        executor.close()
        write(records)
        if unwritten:
            raise unwritten[0]
        if "://" not in out:  # that is told when it is published
            progress.say(f"written to {place}")
        if failed := sum(record.status in ("timeout", "crashed", "error") for record in records):
            again = shlex.join(["sema-bench", "run", "--out", out, "--resume", run.name])
            progress.say(
                f"{failed} of {len(records)} cells did not end well; to try them again: {again} --retry-failed"
            )
        return records


@contextlib.contextmanager
def _held(run: RunFolder, remote: RemoteResults | None) -> Iterator[None]:
    """Hold a run for writing, here and at its URL."""
    with run.lock(), remote.driving(run, warn=warn) if remote else contextlib.nullcontext():
        yield
    if remote:
        tell(f"published as {remote.url}/{run.name}")


@contextlib.contextmanager
def _backend(
    target: RunTarget, root: Path, device: str, models: Sequence[str], fingerprint: str | None = None
) -> Iterator[Backend]:
    backend = open_backend(
        target, root=root, device=device, models=models, fingerprint=fingerprint, warn=warn, said=tell
    )
    try:
        yield backend
    finally:
        backend.close()


def _target_from_json(body: Mapping[str, Any]) -> RunTarget:
    return RunTarget(**{**body, "devices": tuple(body.get("devices", ()))})


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder is gone; go to another one") from None


def _check_code(plan: Plan, run: RunFolder, metadata: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose models are built by other code now.

    Raises:
        UsageError: the package behind a model has another version, or a file that a worker had imported has changed.
    """
    check_packages(run.name, (cell.model for cell in plan.cells), metadata)
    digest_of_file = functools.cache(lambda path: file_digest(Path(str(path))))
    for record in run.records():
        files = record.details.get(MODEL_FILES)
        for path, digest in files.items() if isinstance(files, Mapping) else ():
            if digest_of_file(path) != digest:
                raise UsageError(
                    f"{path}, which {record.cell.model} imports or reads, has changed since run {run.name} measured "
                    "it; start a new run, and compare the two"
                )


def _commits(before: Environment, now: Environment) -> str:
    then, here = (str(environment.context.get("commit") or "unknown") for environment in (before, now))
    if then == here:
        return f"commit {here} then and now, but other changes on top of it"
    return f"commit {then} then, {here} now"


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
