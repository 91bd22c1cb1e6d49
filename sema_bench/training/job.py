"""A training as data: the job, the request, the order, the watcher, and the errors. Imports no torch."""

from __future__ import annotations

import dataclasses
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
from sema_bench.store.run_folder import RunFolder, check_run_name


class TrainingError(SemaBenchError):
    """A training cannot continue; its last good checkpoint stands."""

    exit_code = EXIT_FAILED


@dataclass(frozen=True)
class Job:
    """One training; ``workers`` processes prepare images, None: as many as there are spare CPUs."""

    model: str
    data: DataSpec
    recipe: Recipe
    seed: int
    workers: int | None = None

    def identity(self) -> dict[str, Any]:
        """Identify the weights that this job gives."""
        return {"model": self.model, "data": str(self.data), "seed": self.seed, "recipe": self.recipe.digest}

    def to_json(self) -> dict[str, Any]:
        return {**self.identity(), "recipe": self.recipe.model_dump(mode="json")}


def job_from_json(body: Mapping[str, Any], *, source: str, workers: int | None = None) -> Job:
    """Read a job that ``to_json`` wrote; ``source`` names it in messages."""
    recipe = parse_recipe(body["recipe"], source=source)
    return Job(body["model"], parse_data(body["data"]), recipe, body["seed"], workers)


@dataclass(frozen=True)
class Request:
    """A training to resume in ``folder``, or to start in ``root`` if there is none; the default name is the time."""

    job: Job
    root: Path
    name: str | None
    folder: RunFolder | None = None


def started(model: str, data: str, recipe: Recipe, *, seed: int, out: Path, name: str | None) -> Request:
    """Request a new training."""
    if name is not None:
        check_run_name(name)
    elif count_of_processes("WORLD_SIZE") > 1:
        raise UsageError("several processes need one folder to write to; give --name NAME")
    return Request(Job(model, parse_data(data), recipe, seed), out, name)


def resumed(out: Path, name: str) -> Request:
    """Request the training that the run ``name`` was started with."""
    run = RunFolder.open(out, name)
    metadata = run.metadata()
    body = metadata.get("training")
    if not isinstance(body, dict):
        advice = f"; resume it with sema-bench run --resume {run.name}" if "plan" in metadata else ""
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
    """Follows a trainer at work."""

    def start(self, *, steps: int, done: int, steps_per_epoch: int) -> None: ...

    def step(self, done: int, loss: float, lr: float) -> None: ...

    def evaluated(self, done: int, accuracy: Mapping[str, float]) -> None: ...

    def stop_asked(self) -> bool:
        """Check whether someone asked to stop; the trainer finishes and saves the current step."""
