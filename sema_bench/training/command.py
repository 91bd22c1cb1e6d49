"""What ``sema-bench train`` does: a run's folder, the place among processes, progress, and what is left at the end."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sema_bench import __version__
from sema_bench.errors import StoreError, UsageError
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.devices import resolve_device
from sema_bench.machine.environment import capture, environment_json
from sema_bench.machine.interrupts import Interrupted
from sema_bench.machine.processes import count_of_processes
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.model_source import PACKAGES, ModelGoneError, check_packages, packages_of
from sema_bench.spec.recipe import Recipe, parse_recipe
from sema_bench.spec.record import SCHEMA_VERSION, Environment
from sema_bench.spec.suite import check_model
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.store.files import utc_now
from sema_bench.store.run_folder import RunFolder, check_run_name


@dataclass(frozen=True)
class Request:
    """A training to start, or to go on with.

    Attributes:
        model, data, recipe, seed: what is trained, and how.
        folder: the run, where it exists already.
        root, name: where a new one goes; a name of None is made from the time.
    """

    model: str
    data: str
    recipe: Recipe
    seed: int
    root: Path
    name: str | None
    folder: RunFolder | None = None


def started(model: str, data: str, recipe: Recipe, *, seed: int, out: Path, name: str | None) -> Request:
    """Return the request for a new training.

    Raises:
        UsageError: the data is not named as data is, or several processes have no common name for their folder.
    """
    if name is not None:
        check_run_name(name)
    elif count_of_processes("WORLD_SIZE") > 1:
        raise UsageError("several processes need one folder to write to; give --name NAME")
    spec = parse_data(data)
    return Request(model, str(spec), recipe, seed, out, name)


def resumed(out: Path, name: str) -> Request:
    """Return the request that the run ``name`` was started with.

    Raises:
        UsageError: there is no such run, or it is no training.
        StoreError: its run.json is damaged.
    """
    run = RunFolder.open(out, name)
    metadata = run.metadata()
    body = metadata.get("training")
    if not isinstance(body, dict):
        advice = f"; resume it with sema-bench run --resume {run.name}" if "plan" in metadata else ""
        raise UsageError(f"run {run.name} is no training{advice}")
    try:
        recipe = parse_recipe(body["recipe"], source=f"{run.path / 'run.json'}")
        model, data, seed = check_model(body["model"]), str(parse_data(body["data"])), body["seed"]
        if type(seed) is not int or not 0 <= seed < 2**31:
            raise ValueError(f"its seed is {seed!r}")
    except ModelGoneError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as problem:
        raise StoreError(f"{run.path / 'run.json'} holds no training that can be gone on with: {problem}") from None
    check_packages(run.name, [model], metadata)
    return Request(model, data, recipe, seed, out, name, run)


def execute(request: Request, *, device: str, needs_cuda: bool, threads: int | None, workers: int | None) -> None:
    """Train; write weights, metrics and plot.

    Args:
        request: what.
        device: see ``take_place``, or ``auto``.
        needs_cuda: refuse a CPU, on which this would take months.
        threads: intra-op threads; None: what this process may use.
        workers: processes that prepare images; None: spare CPUs.

    Raises:
        SemaBenchError: see the parts.
        Interrupted: someone asked to stop; the state is saved.
    """
    import torch

    from sema_bench.data.loader import default_workers
    from sema_bench.errors import ProbeError
    from sema_bench.report.training_plot import write_training_plot
    from sema_bench.training.devices import take_place
    from sema_bench.training.display import TrainingDisplay
    from sema_bench.training.job import Job
    from sema_bench.training.metrics_log import read_journal
    from sema_bench.training.trainer import JOURNAL, Trainer
    from sema_bench.worker.foreign_model import SizeNotSupportedError

    check_threads([threads] if threads else [])
    torch.set_num_threads(threads or default_threads())
    environment = capture()
    resolved = resolve_device(device, environment)
    if resolved == "meta":
        raise UsageError("device meta runs nothing, so nothing is trained on it; use cpu or cuda")
    if needs_cuda and not resolved.startswith("cuda"):
        raise UsageError(f"this suite needs a CUDA device, and the training would be on {resolved}")
    place = take_place(resolved)
    try:
        run = _folder(request, environment, leads=place.leads)
        place.wait()
        spec = parse_data(request.data)
        count = default_workers() if workers is None else workers
        job = Job(request.model, spec, request.recipe, request.seed, count)
        with _lock(run, held=place.leads), TrainingDisplay(shown=place.leads) as display, _asked(display) as asked:
            try:
                trainer = Trainer(job, run.path, place, display)
            except (UsageError, ProbeError, SizeNotSupportedError):
                if request.folder is None and place.leads:
                    run.discard()
                raise
            for note in trainer.notes:
                display.say(f"warning: {note}")
            display.say(f"run {run.path}")
            finished = trainer.run()
            if place.leads:
                title = f"{request.model} on {request.data}"
                write_training_plot(read_journal(run.path / JOURNAL), run.path / "plots", title=title)
            if not finished:
                again = shlex.join(["sema-bench", "train", "--out", str(run.path.parent), "--resume", run.name])
                display.say(f"stopped; the state is saved. Go on with: {again}")
                raise Interrupted(asked[0] if asked else signal.SIGTERM)
            display.say(f"weights in {run.path / WEIGHTS_FILE}")
    except (ProbeError, SizeNotSupportedError) as problem:
        raise UsageError(str(problem)) from None
    finally:
        place.leave()


def _folder(request: Request, environment: Environment, *, leads: bool) -> RunFolder:
    """Return the run's folder; the leading process makes it where it is new."""
    if request.folder is not None:
        return request.folder
    if not leads:
        return RunFolder(request.root / str(request.name))
    training: dict[str, Any] = {
        "model": request.model,
        "data": request.data,
        "seed": request.seed,
        "recipe": request.recipe.model_dump(mode="json"),
    }
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "sema_bench": __version__,
        "command": shlex.join(["sema-bench", *sys.argv[1:]]),
        "created_at": utc_now(),
        "training": training,
        PACKAGES: packages_of([request.model]),
        "environment": environment_json(environment),
    }
    return RunFolder.create(request.root, "train", request.name, metadata=metadata)


@contextmanager
def _lock(run: RunFolder, *, held: bool) -> Iterator[None]:
    if not held:
        yield
        return
    with run.lock():
        yield


@contextmanager
def _asked(display: Any) -> Iterator[list[int]]:
    """Let signals ask the training to stop after the step at hand; a second one stops it at once."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise Interrupted(number)
        asked.append(number)
        display.stop()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]  # nohup asked not to
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
