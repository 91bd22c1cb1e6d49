"""Train the models of a suite before its cells run, each in its own process.

On a CPU each training has one thread, and as many run side by side as the suite has threads: that uses the cores best
for small networks, and the weights do not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from sema_bench.errors import EXIT_INCOMPLETE, StoreError
from sema_bench.machine.processes import child_environment, close_pipes
from sema_bench.report.progress import ProgressDisplay
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.plan import Plan
from sema_bench.spec.weights_source import FAILURE, WEIGHTS_FILE, trained_seed, training_folder
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder
from sema_bench.text.escape import printable
from sema_bench.training.job import Job, Order, check_installed

#: How long trainings may take to save their state when the run is stopped.
_GRACE_S = 20.0


def train_missing(plan: Plan, run: RunFolder, *, progress: ProgressDisplay, retry_failed: bool = False) -> None:
    """Train every model of ``plan`` whose weights ``run`` lacks, and record failures.

    A training that is killed resumes once, after the others.
    """
    trainings = {training_folder(run.path, cell): cell for cell in plan.cells if trained_seed(cell.weights) is not None}
    missing = [
        (folder, cell)
        for folder, cell in trainings.items()
        if not (folder / WEIGHTS_FILE).exists() and (retry_failed or not (folder / FAILURE).exists())
    ]
    if missing:
        check_installed()
        progress.say(f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them done already")
        _Trainings(plan, missing, len(trainings), progress).run()


class _Training:
    """A running training process."""

    def __init__(self, cell: Cell, folder: Path, order: Order) -> None:
        self.cell, self.folder = cell, folder
        self.facts: dict[str, Any] = {"done": 0, "steps": 0}
        self.started = time.monotonic()
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sema_bench.training.process", json.dumps(dataclasses.asdict(order))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(OMP_NUM_THREADS=str(order.threads), MKL_NUM_THREADS=str(order.threads)),
            start_new_session=True,
        )

    def fileno(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()

    def read(self) -> bool:
        """Read the lines that the process printed; return True if it has ended."""
        chunk = os.read(self.fileno(), 1 << 16)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # a model's code may print too
                self.facts |= json.loads(line)
        return not chunk

    def end(self) -> tuple[str, int]:
        """Wait for the process; return its problem in one line, "" if it trained, and its exit code."""
        code = self.process.wait()
        with self._stderr:
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        close_pipes(self.process)
        if (self.folder / WEIGHTS_FILE).exists():
            return "", code
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return str(self.facts.get("failed") or ": ".join([f"the training {ended}", *lines[-1:]])), code


class _Trainings:
    def __init__(self, plan: Plan, missing: list[tuple[Path, Cell]], total: int, progress: ProgressDisplay) -> None:
        self._plan, self._progress, self._total = plan, progress, total
        self._missing = len(missing)
        self._waiting = deque(missing)
        self._started = time.monotonic()
        self._running: list[_Training] = []
        self._again: set[Cell] = set()

    def run(self) -> None:
        cell = self._plan.cells[0]
        side_by_side = cell.threads if cell.device == "cpu" else 1
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < side_by_side:
                    self._start(*self._waiting.popleft())
                for training in select.select(self._running, [], [], 1.0)[0]:
                    if training.read():
                        self._running.remove(training)
                        self._finish(training)
                    else:
                        facts = training.facts
                        self._progress.phase(training.cell, f"training, step {facts['done']} of {facts['steps']}")
        except BaseException:
            for training in self._running:
                training.process.terminate()
            deadline = time.monotonic() + _GRACE_S
            for training in self._running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    training.process.wait(timeout=max(0.0, deadline - time.monotonic()))
                training.process.kill()
                training.process.wait()
            raise

    def _start(self, folder: Path, cell: Cell) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)
        except OSError as problem:
            raise StoreError(f"cannot write to {folder}: {problem.strerror}") from None
        seed = trained_seed(cell.weights)
        assert seed is not None
        on_cpu = cell.device == "cpu"
        workers = 0 if on_cpu else self._plan.evaluation.workers
        order = Order(
            job=Job(cell.model, parse_data(cell.data), self._plan.recipes[cell.data], seed, workers).to_json(),
            folder=str(folder),
            device=cell.device,
            threads=1 if on_cpu else cell.threads,
            workers=workers,
            parent=os.getpid(),
        )
        self._running.append(_Training(cell, folder, order))

    def _finish(self, training: _Training) -> None:
        problem, code = training.end()
        cell, took = training.cell, time.monotonic() - training.started
        name = f"{cell.model} on {cell.data}, seed {trained_seed(cell.weights)}"
        if problem and code == EXIT_INCOMPLETE:
            raise StoreError(f"{name}: {problem}; fix that and resume the run")
        if problem and code <= 0 and cell not in self._again:  # someone stopped it, or memory was short
            self._again.add(cell)
            self._waiting.append((training.folder, cell))
            self._progress.say(f"{name}: {printable(problem)}; it resumes later from its last state")
            return
        if problem:
            with contextlib.suppress(StoreError):
                write_own(training.folder / FAILURE, json.dumps({"failed": problem}))
            result = f"failed: {printable(problem)}"
        else:
            facts = training.facts
            tested = f", {facts['tested']}" if "tested" in facts else ""
            result = f"{facts['steps']} steps in {took:.0f} s{tested}"
        remaining = len(self._waiting) + len(self._running)
        left = (time.monotonic() - self._started) / (self._missing - remaining) * remaining
        self._progress.say(
            f"trained [{self._total - remaining}/{self._total}] {name}: {result}; about {left / 60:.0f} min left for "
            "the rest"
        )
