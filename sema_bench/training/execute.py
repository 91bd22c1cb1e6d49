"""Train in this process: for ``sema-bench train``, alone or under torchrun, or as a child process of a suite."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from sema_bench.driver.device_lock import gpu_lock
from sema_bench.errors import ProbeError, UsageError
from sema_bench.machine.cpus import check_threads, default_threads
from sema_bench.machine.devices import resolve_device
from sema_bench.machine.environment import capture, environment_json
from sema_bench.machine.interrupts import Interrupted, on_signals
from sema_bench.report.progress import TrainingDisplay
from sema_bench.report.training_plot import write_training_plot
from sema_bench.spec.model_source import PACKAGES, packages_of
from sema_bench.spec.record import Environment
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.store.run_folder import RunFolder, creation_facts, resume_command
from sema_bench.training.devices import Distributed, join_processes
from sema_bench.training.job import Job, Order, Request, Watcher, job_from_json
from sema_bench.training.metrics_log import read_metrics
from sema_bench.training.trainer import METRICS_LOG, Trainer
from sema_bench.worker.build_model import SizeNotSupportedError, usage_errors


def train_order(order: Order, watcher: Watcher) -> None:
    """Run a training that a suite ordered."""
    torch.set_num_threads(order.threads)
    job = job_from_json(order.job, workers=order.workers, source="the order")
    with gpu_lock(order.device), usage_errors():
        Trainer(job, Path(order.folder), Distributed(0, 1, torch.device(order.device)), watcher).run()


def execute(request: Request, *, device: str, needs_cuda: bool, threads: int | None, workers: int | None) -> None:
    """Train; write weights, metrics and plot into the run's folder.

    With ``needs_cuda``, refuse a CPU: it would take months. Without ``threads`` or ``workers``, training uses the CPUs
    that this process may use.
    """
    check_threads([threads] if threads else [])
    torch.set_num_threads(threads or default_threads())
    environment = capture()
    resolved = resolve_device(device, environment)
    if resolved == "meta":
        raise UsageError("device meta runs nothing, so nothing is trained on it; use cpu or cuda")
    if needs_cuda and not resolved.startswith("cuda"):
        raise UsageError(f"this suite needs a CUDA device, and the training would be on {resolved}")
    distributed = join_processes(resolved)
    cards = contextlib.ExitStack()
    try:
        for card in distributed.cards:
            cards.enter_context(gpu_lock(card))
        run = _folder(request, environment, leads=distributed.leads)
        distributed.wait()
        with run.lock() if distributed.leads else contextlib.nullcontext(), usage_errors():
            job = dataclasses.replace(request.job, workers=workers)
            _train(job, run, distributed, is_new=request.folder is None)
    finally:
        cards.close()
        distributed.leave()


def _train(job: Job, run: RunFolder, distributed: Distributed, *, is_new: bool) -> None:
    with TrainingDisplay(quiet=not distributed.leads) as display, _first_signal_stops(display) as signals:
        try:
            trainer = Trainer(job, run.path, distributed, display)
        except (UsageError, ProbeError, SizeNotSupportedError):
            if is_new and distributed.leads:
                run.discard()
            raise
        for note in trainer.notes:
            display.say(f"warning: {note}")
        display.say(f"run {run.path}")
        finished = trainer.run()
        if distributed.leads:
            metrics = read_metrics(run.path / METRICS_LOG)
            write_training_plot(metrics, run.path / "plots", title=f"{job.model} on {job.data}")
        if not finished:
            again = resume_command(run.path, command="train")
            display.say(f"stopped; the state is saved. Resume with: {again}")
            raise Interrupted(signals[0] if signals else signal.SIGTERM)
        display.say(f"weights in {run.path / WEIGHTS_FILE}")


def _folder(request: Request, environment: Environment, *, leads: bool) -> RunFolder:
    """Open the run's folder; the leading process makes a new one."""
    if request.folder is not None:
        return request.folder
    if not leads:
        return RunFolder(request.root / str(request.name))
    metadata = {
        **creation_facts(),
        "training": request.job.to_json(),
        PACKAGES: packages_of([request.job.model]),
        "environment": environment_json(environment),
    }
    return RunFolder.create(request.root, "train", request.name, metadata=metadata)


@contextlib.contextmanager
def _first_signal_stops(display: TrainingDisplay) -> Iterator[list[int]]:
    """Stop the training after the current step on the first signal, at once on the second; yield the signals."""
    signals: list[int] = []

    def handle(number: int) -> None:
        if signals:
            raise Interrupted(number)
        signals.append(number)
        display.stop()

    with on_signals(handle):
        yield signals
