"""One run from start to end: environment, plan, workers, records, tables and plots.

    records = Run.start(suite, root=Path("results")).execute()

``Run`` is what the command line, the gate, pytest and a notebook call; nothing else starts a measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.cluster.backends import Backend, open_backend
from sema_bench.cluster.slurm_states import living_jobs
from sema_bench.data.datasets import TestImages
from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.memory_fit import Outlook, capacity_bytes, total_bytes, unfit
from sema_bench.driver.schedule import Schedule
from sema_bench.errors import StoreError, UsageError
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.devices import card_of, resolve_device
from sema_bench.machine.environment import capture, check_same, environment_from_json, environment_json
from sema_bench.machine.interrupts import Interrupted
from sema_bench.report.folder import OutputWriter, write_outputs
from sema_bench.report.notebook import LoadedRun, read_run
from sema_bench.report.progress import WRITE_S, ProgressDisplay
from sema_bench.report.summary import retry_hint, sampling_facts, sampling_sentence
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_code import MODEL_FILES, file_digest
from sema_bench.spec.model_source import PACKAGES, check_packages, packages_of, parse_source
from sema_bench.spec.plan import Plan, build_plan
from sema_bench.spec.record import Environment, Record
from sema_bench.spec.suite import Suite, load_suite, parse_suite
from sema_bench.spec.target import RunTarget
from sema_bench.spec.units import counted
from sema_bench.store.remote import RemoteResults
from sema_bench.store.run_folder import (
    RunFolder,
    check_free,
    check_run_name,
    command_in,
    creation_facts,
    resume_command,
)
from sema_bench.text.console import tell, warn
from sema_bench.text.plain_json import mapping
from sema_bench.training.train_suite import train_missing


class Run:
    """A plan, the folder that keeps its records, and the backend that measures its cells.

    Make one with ``start`` or ``resume``, then call ``execute`` once.

    Attributes:
        plan: the cells, and how they are measured.
        folder: run.json, records, tables and plots.
        environment: that of the machines that measure.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        target: RunTarget,
        *,
        environment: Environment,
        backend: Backend | None = None,
        remote: RemoteResults | None = None,
    ) -> None:
        self.plan, self.folder, self.environment = plan, folder, environment
        self._target, self._backend, self._remote = target, backend, remote

    @classmethod
    def start(
        cls,
        suite: Suite,
        target: RunTarget = RunTarget(),  # noqa: B008 - frozen
        *,
        root: Path,
        name: str | None = None,
        remote: RemoteResults | None = None,
    ) -> Run:
        """Plan ``suite`` for the machines of ``target``, and make a run folder in ``root``, or in ``remote``.

        Raises:
            UsageError: the machines cannot measure the suite or the device, or the run's name is taken.
            StoreError: the folder cannot be written.
        """
        _check_working_folder()
        plan_for = functools.cache(functools.partial(build_plan, suite))
        if target.executor == "local":  # a bad request fails before anything is started
            device = resolve_device(suite.device)
            plan_for(device=device, threads=default_threads(), card=card_of(device))
        if target.executor != "local" and suite.training:
            raise UsageError(f"suite {suite.name!r} trains before it tests, and only --executor local can train")
        if "accuracy" in suite.probes:
            for data in suite.data or []:  # report missing images now, not cell by cell
                for note in TestImages(parse_data(data)).notes:
                    warn(note)
        sources = [parse_source(model) for model in suite.models]
        names = [source.name for source in sources if source.kind == "registry" or source.needs_trial]
        if remote is not None:
            root = remote.root
            if name is not None and check_run_name(name) in remote.names():
                raise UsageError(f"run {name!r} exists already in {remote.url}; resume it or choose another name")
            remote.check_writable()
        else:
            check_free(root, name)  # before waiting for a cluster
        with contextlib.ExitStack() as stack:
            backend = open_backend(target, root=root, device=suite.device, models=names)
            stack.callback(backend.close)
            plan = plan_on(backend, suite, plan_for)
            metadata = {
                **creation_facts(),
                "suite": suite.model_dump(),
                "plan": plan.to_json(),
                "where": dataclasses.asdict(target),
                PACKAGES: packages_of(source.name for source in sources),
                "environment": environment_json(backend.environment),
            }
            folder = RunFolder.create(root, plan.suite, name, metadata=metadata)
            stack.pop_all()  # ``execute`` closes the backend
        return cls(plan, folder, target, environment=backend.environment, backend=backend, remote=remote)

    @classmethod
    def resume(
        cls, name: str, *, root: Path, target: RunTarget | None = None, remote: RemoteResults | None = None
    ) -> Run:
        """Read the run ``name`` of ``root``, or of ``remote``; it continues on the same machines, or on ``target``.

        Raises:
            UsageError: there is no such run, its models have changed, or Slurm jobs still measure it.
            StoreError: the run cannot be read.
        """
        _check_working_folder()
        if remote is not None:
            remote.pull(name)
            root = remote.root
            if not (root / name / "run.json").is_file():
                raise UsageError(
                    f"no run {name!r} in {remote.url}; sema-bench history --out {remote.url} lists those there"
                )
        folder = RunFolder.open(root, name)
        metadata = folder.metadata()
        if "plan" not in metadata and metadata.get("suite") is None:
            if "training" in metadata:
                raise UsageError(
                    f"run {folder.name} is a training; resume it with {resume_command(folder.path, command='train')}"
                )
            raise UsageError(f"run {folder.name} has no cells to resume; start a new run")
        try:
            body = metadata["plan"]
            if isinstance(body, dict) and not body.get("groups", True):
                raise StoreError("run.json holds no plan that this release can read: it has no cells")
            plan = Plan.from_json(body)
            environment = environment_from_json(metadata["environment"])
            target = target or _target_from_json(metadata.get("where", {}))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise StoreError(f"{folder.path / 'run.json'} is not complete; start a new run") from None
        _check_code(plan, folder, metadata)
        if jobs := living_jobs(folder.path / "slurm"):
            still = f"Slurm jobs still measure run {folder.name}: {', '.join(jobs[:3])}"
            if target.executor != "slurm":
                raise UsageError(f"{still}; resume with --executor slurm, or scancel them first")
            tell(f"{still}; their records will be used")
        return cls(plan, folder, target, environment=environment, remote=remote)

    def execute(
        self,
        *,
        skip: bool = True,
        retry_failed: bool = False,
        quiet: bool = False,
        worker_command: Sequence[str] = (),
    ) -> list[Record]:
        """Measure every cell that lacks a record; return the latest record of each, in plan order.

        Args:
            skip: skip cells that are expected to fail.
            retry_failed: measure cells with another status than ``ok`` again.
            quiet: show no progress, and make no tables or plots.
            worker_command: command line of a worker; tests pass another one.

        Raises:
            UsageError: another process holds the run, or it was started on another machine or with other code.
            StoreError: a record could not be written; all earlier ones are safe.
            WorkerError: the machines are lost.
            Interrupted: the user or a scheduler stopped it.
        """

        def read_schedule() -> Schedule:
            environment = self.environment.fingerprint
            return Schedule(self.plan, self.folder, environment=environment, skip=skip, retry_failed=retry_failed)

        if self._backend is None and self._target.executor != "local" and not (schedule := read_schedule()).missing:
            write_outputs(self.folder.path, schedule.records)  # no need to wait for a cluster
            tell(f"all {len(schedule.records)} cells of {self.folder.name} are done")
            return schedule.records
        with (
            contextlib.closing(self._backend) if self._backend else contextlib.nullcontext(),
            self._held(),
            self._opened() as backend,
            ProgressDisplay(
                sampling=self.plan.sampling, timed="throughput" in self.plan.probes, write_s=WRITE_S, quiet=quiet
            ) as progress,
        ):
            progress.say(f"run {self._url}")
            if self._target.executor == "ray" or self._target.devices:
                progress.say(f"measured on {', '.join(backend.lanes)}")
            if self.plan.cells[0].device == "meta":
                progress.say(f"device meta: nothing runs, {', '.join(self.plan.probes)} follow from shapes")
            outputs, many = OutputWriter(self.folder.path), len(backend.lanes) != 1
            executor = backend.executor(self.plan, self.folder.path.absolute(), progress.phase, worker_command)

            def renew() -> None:
                if outputs.is_due and not quiet and not many:  # drawing would disturb the timing of other lanes
                    with progress.writing():
                        outputs.renew(schedule.records)

            try:
                train_missing(self.plan, self.folder, progress=progress, retry_failed=retry_failed)
                schedule = read_schedule()
                with self._noting_time(schedule, lanes=len(backend.lanes)):
                    records = schedule.run(
                        executor,
                        progress,
                        unfit=lambda cells: self._too_large(cells, progress),
                        between_groups=renew,
                    )
            except BaseException as problem:
                executor.cancel()
                if isinstance(problem, Interrupted):
                    progress.say(f"stopped; {self._finished()}. Resume with: {self._again}")
                raise
            with progress.writing():
                executor.close()
                if not quiet:
                    outputs.finish(records)
            if sentence := sampling_sentence(mapping(self.folder.metadata().get("sampling"))):
                progress.say(sentence, wrap=True)
            if not self._remote:  # publishing it prints the URL
                progress.say(f"written to {self._url}")
            if hint := retry_hint(records, f"{self._again} --retry-failed"):
                progress.say(hint)
            return records

    def read(self) -> LoadedRun:
        """Read the records so far; ``table``, ``scaling`` and ``compare`` make data frames of them."""
        return read_run(self.folder.path.absolute())

    @property
    def _url(self) -> str:
        return f"{self._remote.url}/{self.folder.name}" if self._remote else str(self.folder.path)

    @property
    def _again(self) -> str:
        """The command that resumes the run."""
        out = self._remote.url if self._remote else str(self.folder.path.parent)
        return command_in(out, "run", "--resume", self.folder.name)

    def _finished(self) -> str:
        """Say how many cells a resume need not measure again."""
        planned = {cell.id for cell in self.plan.cells}
        done = len(planned.intersection(record.cell.id for record in self.folder.records()))
        lost = not done and "accuracy" not in self.plan.probes  # an unfinished evaluation and a training are kept
        kept = " and are kept" if done else ", so a resume starts over" if lost else ""
        return f"{done} of {counted(len(planned), 'cell')} finished{kept}"

    @contextlib.contextmanager
    def _noting_time(self, schedule: Schedule, *, lanes: int) -> Iterator[None]:
        """Note in run.json which share of the time goes into samples, even if the run is stopped."""
        todo, started = {cell.id for group in schedule.missing for cell in group}, time.monotonic()
        try:
            yield
        finally:
            with contextlib.suppress(StoreError):  # no measurement depends on it
                # Not for Slurm (no lanes), whose tasks also queue. Work after the last record is lost: do not count it.
                if schedule.kept_at and lanes and "throughput" in self.plan.probes:
                    metadata = self.folder.metadata()
                    metadata["sampling"] = sampling_facts(
                        schedule.records,
                        [record for record in schedule.records if record.cell.id in todo],
                        wall_s=(schedule.kept_at - started) * lanes,
                        limits=self.plan.sampling,
                        earlier=metadata.get("sampling"),
                    )
                    self.folder.write_metadata(metadata)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run for writing, here and at its URL."""
        with (
            self.folder.lock(),
            self._remote.driving(self.folder, warn=warn) if self._remote else contextlib.nullcontext(),
        ):
            yield
        if self._remote:
            tell(f"published as {self._url}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Backend]:
        """Connect to the machines, unless ``start`` has; raise UsageError if they or the code differ from the run's."""
        if self._backend:
            yield self._backend
            return
        backend = open_backend(
            self._target,
            root=self.folder.path.parent,
            device=self.plan.cells[0].device,
            fingerprint=self.environment.fingerprint,
        )
        with contextlib.closing(backend):
            check_same(self.folder.name, self.environment, backend.environment)
            if bad := self.folder.quarantine():
                warn(f"dropped unreadable lines of records.jsonl; {bad.name} is a copy of the original")
            yield backend

    def _too_large(self, cells: Sequence[Cell], progress: ProgressDisplay) -> Mapping[Cell, str]:
        if self._target.executor == "local" or not cells:  # locally, the first size that runs out shows it
            return {}
        progress.say("predicting what fits into memory")
        return too_large(self.plan, cells, self.environment)


def run_suite(
    suite: str | Path | Mapping[str, Any], *, name: str | None = None, root: str | Path = "results", quiet: bool = False
) -> Run:
    """Measure a suite as ``sema-bench run`` does; ``Run.read`` gives the tables.

    Args:
        suite: a suite file, the name of a suite that comes with the project, or the keys of one, for example
            ``{"models": ["sema_tiny", "deit_small"], "res": "224,512"}``.
        name: name of the run; default: ``<time>-<suite>``. ``Run.resume(name, root=…)`` resumes a stopped run.
        root: results folder.
        quiet: show no progress, and make no tables or plots.

    Raises:
        SuiteError: the suite has an unknown key or a wrong value.
        UsageError: it cannot be measured on this machine, or the run's name is taken.
        StoreError: a record could not be written; all earlier ones are there.
    """
    chosen = (
        parse_suite({"name": "suite", **suite}, source="suite")
        if isinstance(suite, Mapping)
        else load_suite(str(suite))
    )
    run = Run.start(chosen, root=Path(root), name=name)
    run.execute(quiet=quiet)
    return run


def checked_plan(suite: Suite) -> Plan:
    """Plan ``suite`` for this machine without starting a run, or raise UsageError.

    Build the models whose names set options, without allocating memory.
    """
    check_threads(suite.threads or ())
    device = resolve_device(suite.device)
    plan = build_plan(suite, device=device, threads=default_threads(), card=card_of(device))
    names = dict.fromkeys(cell.model for cell in plan.cells)
    if trials := [name for name in names if parse_source(name).needs_trial]:
        capture(trials)
    return plan


def plan_on(backend: Backend, suite: Suite, plan_for: Callable[..., Plan] | None = None) -> Plan:
    """Plan ``suite`` for the machines of ``backend``; ``plan_for`` plans it for a device, a card and threads."""
    check_threads(suite.threads or (), backend.threads)
    plan_for = plan_for or functools.partial(build_plan, suite)
    device = resolve_device(suite.device, backend.environment)
    return plan_for(device=device, threads=backend.threads, card=card_of(device, backend.environment))


def predict(plan: Plan) -> Iterator[Outlook]:
    """Predict the memory of every cell of ``plan`` on this machine, in worker processes, without running any."""
    free = capacity_bytes(plan.cells[0].device)
    with _forecaster(plan) as forecaster:
        for record in forecaster.run((group, {}) for group in plan.groups):
            yield Outlook(record, free)


def too_large(plan: Plan, cells: Sequence[Cell], environment: Environment) -> Mapping[Cell, str]:
    """Predict which of ``cells`` do not fit on machines with ``environment``; map each to the reason."""
    total = total_bytes(environment, plan.cells[0].device)
    if total is None:
        return {}
    with _forecaster(plan) as forecaster:
        return unfit(cells, forecaster, total)


@contextlib.contextmanager
def _forecaster(plan: Plan) -> Iterator[LocalExecutor]:
    """Open an executor that predicts the memory of cells, and runs none."""
    executor = LocalExecutor(dataclasses.replace(plan, probes=("forecast",)))
    try:
        yield executor
    finally:
        executor.cancel()


def _target_from_json(body: Mapping[str, Any]) -> RunTarget:
    return RunTarget(**{**body, "devices": tuple(body.get("devices", ()))})


def _check_working_folder() -> None:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder no longer exists; change to another one") from None


def _check_code(plan: Plan, run: RunFolder, metadata: Mapping[str, Any]) -> None:
    """Raise UsageError if the package or a file behind a model has changed since the run used it."""
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
