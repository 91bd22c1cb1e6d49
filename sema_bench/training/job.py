"""A training as data: the job, the request, the order, the watcher, and the errors. Imports no torch."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sema_bench.errors import EXIT_FAILED, SemaBenchError, StoreError, UsageError
from sema_bench.machine.processes import count_of_processes
from sema_bench.spec.cell import check_model
from sema_bench.spec.data_source import DataSpec, parse_data
from sema_bench.spec.model_source import ModelGoneError, check_packages
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.weights_source import digest_of
from sema_bench.store.run_folder import RunFolder, check_run_name, resume_command


class TrainingError(SemaBenchError):
    """A training cannot continue; its last good checkpoint stands."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        workers: processes that prepare images; None: as many as there are spare CPUs.
        init: the weights to begin with, ``<file>@<digest>``; empty: random ones.
    """

    model: str
    data: DataSpec
    recipe: Recipe
    seed: int
    workers: int | None = None
    init: str = ""

    def identity(self) -> dict[str, Any]:
        """Identify the weights that this job gives."""
        weights = {"recipe": self.recipe.digest, "init": self.init}
        return {"model": self.model, "data": str(self.data), "seed": self.seed, **weights}

    def to_json(self) -> dict[str, Any]:
        return {**self.identity(), "recipe": self.recipe.model_dump(mode="json")}


def job_from_json(body: Mapping[str, Any], *, source: str, workers: int | None = None) -> Job:
    """Read a job that ``to_json`` wrote; ``source`` names it in messages."""
    recipe = parse_recipe(body["recipe"], source=source)
    return Job(body["model"], parse_data(body["data"]), recipe, body["seed"], workers, str(body.get("init", "")))


def missing_libraries() -> list[str]:
    """Name the missing libraries of the extra ``train``."""
    return [name for name in ("timm", "torchvision") if importlib.util.find_spec(name) is None]


def check_installed() -> None:
    """Raise UsageError if the extra ``train`` is missing."""
    if missing := missing_libraries():
        raise UsageError(f"training needs {' and '.join(missing)}; pip install 'sema-bench[train]'")


@dataclass(frozen=True)
class Request:
    """A training to resume in ``folder``, or to start in ``root`` if there is none; the default name is the time."""

    job: Job
    root: Path
    name: str | None
    folder: RunFolder | None = None


def started(job: Job, *, init: Path | None, out: Path, name: str | None) -> Request:
    """Request a new training, which begins with the checkpoint ``init`` if there is one."""
    if name is not None:
        check_run_name(name)
    elif count_of_processes("WORLD_SIZE") > 1:
        raise UsageError("several processes need one folder to write to; give --name NAME")
    named = "" if init is None else f"{init.absolute()}@{digest_of(init)}"
    return Request(dataclasses.replace(job, init=named), out, name)


def resumed(out: Path, name: str) -> Request:
    """Request the training that the run ``name`` was started with."""
    run = RunFolder.open(out, name)
    metadata = run.metadata()
    body = metadata.get("training")
    if not isinstance(body, dict):
        advice = f"; resume it with {resume_command(run.path)}" if "plan" in metadata else ""
        raise UsageError(f"run {run.name} is not a training{advice}")
    source = str(run.path / "run.json")
    try:
        job = job_from_json(body, source=source)
        job = dataclasses.replace(job, model=check_model(job.model))
        if type(job.seed) is not int or not 0 <= job.seed < 2**31:
            raise ValueError(f"its seed is {job.seed!r}")
    except ModelGoneError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as problem:
        raise StoreError(f"{source} holds no training that can be resumed: {problem}") from None
    check_packages(run.name, [job.model], metadata)
    return Request(job, out, name, run)


@dataclass(frozen=True)
class Order:
    """A training for ``python -m sema_bench.training.process``, which takes it as JSON and ends with ``parent``."""

    job: dict[str, Any]
    folder: str
    device: str
    threads: int
    workers: int | None
    parent: int


class Watcher(Protocol):
    """Follows a trainer."""

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None: ...

    def step(self, done: int, loss: float, lr: float) -> None: ...

    def evaluated(self, done: int, accuracy: Mapping[str, Any]) -> None: ...

    def stop_asked(self) -> bool:
        """Check whether someone asked to stop; the trainer finishes and saves the current step."""
