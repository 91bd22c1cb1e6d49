"""The trainings that a suite asks for, before its cells: each in a process of its own, side by side on a CPU.

On a CPU every training has one thread, whatever the machine, and as many run side by side as the suite's threads allow:
the networks of a suite are small, one thread each uses the cores best, and the weights do not depend on their number.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sema_bench.errors import EXIT_INCOMPLETE, StoreError
from sema_bench.machine.processes import child_environment, close_pipes
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.weights_source import FAILURE, WEIGHTS_FILE, trained_seed, training_folder
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder
from sema_bench.text.escape import printable
from sema_bench.training.process import Order

#: How long trainings may take to save their state when the run is stopped.
_GRACE_S = 20.0


class Display(Protocol):
    """What is told of the trainings."""

    def say(self, message: str) -> None: ...

    def phase(self, cell: Cell, phase: str) -> None: ...


def train_what_is_missing(plan: Plan, run: RunFolder, *, progress: Display, retry_failed: bool = False) -> None:
    """Train every model of ``plan`` whose weights ``run`` lacks; one that fails is kept as a failure.

    One that is killed goes on once more, after the others.

    Raises:
        StoreError: a folder cannot be made, or a training could not write.
    """
    trainings = {training_folder(run.path, cell): cell for cell in plan.cells if trained_seed(cell.weights) is not None}
    missing = {
        folder: cell
        for folder, cell in trainings.items()
        if not (folder / WEIGHTS_FILE).exists() and (retry_failed or not (folder / FAILURE).exists())
    }
    if not missing:
        return
    progress.say(f"{len(trainings)} trainings, {len(trainings) - len(missing)} of them done already")
    _Campaign(plan, missing, len(trainings), progress).run()


class _Training:
    """A running training process."""

    def __init__(self, cell: Cell, folder: Path, order: Order) -> None:
        self.cell, self.folder = cell, folder
        self.done = self.steps = 0
        self.last: Mapping[str, Any] = {}
        self.started = time.monotonic()
        self._buffer = b""
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sema_bench.training.process", order.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=child_environment(OMP_NUM_THREADS=str(order.threads), MKL_NUM_THREADS=str(order.threads)),
            start_new_session=True,
        )

    def fileno(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self) -> bool:
        """Take in what it told; tells whether it has ended."""
        chunk = os.read(self.fileno(), 1 << 16)
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                self.last = {**self.last, **told}
                self.done, self.steps = told.get("done", self.done), told.get("steps", self.steps)
        return not chunk

    def end(self) -> tuple[str, int]:
        """Wait for the process; returns what went wrong, in one line, and its exit code."""
        code = self._process.wait()
        last = ""
        with contextlib.suppress(OSError, ValueError):
            self._stderr.seek(0)
            lines = self._stderr.read().decode(errors="replace").strip().splitlines()
            last = f": {lines[-1]}" if lines else ""
        self._stderr.close()
        close_pipes(self._process)
        if (self.folder / WEIGHTS_FILE).exists():
            return "", code
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return str(self.last.get("failed") or f"the training {ended}{last}"), code

    def ask_to_stop(self) -> None:
        self._process.terminate()

    def kill_after(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=max(0.0, seconds))
        self._process.kill()
        self._process.wait()


class _Campaign:
    def __init__(self, plan: Plan, missing: Mapping[Path, Cell], total: int, progress: Display) -> None:
        self._plan, self._progress, self._total = plan, progress, total
        self._waiting = deque(missing.items())
        self._finished = 0
        self._before = total - len(missing)
        self._started = time.monotonic()
        self._running: list[_Training] = []
        self._again: set[Cell] = set()

    def run(self) -> None:
        """Train all."""
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
                        self._progress.phase(training.cell, f"training, step {training.done} of {training.steps}")
        except BaseException:
            for training in self._running:
                training.ask_to_stop()
            deadline = time.monotonic() + _GRACE_S
            for training in self._running:
                training.kill_after(deadline - time.monotonic())
            raise

    def _start(self, folder: Path, cell: Cell) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)
        except OSError as problem:
            raise StoreError(f"cannot write to {folder}: {problem.strerror}") from None
        seed = trained_seed(cell.weights)
        assert seed is not None
        workers = self._plan.evaluation.workers
        order = Order(
            model=cell.model,
            data=cell.data,
            seed=seed,
            recipe=self._plan.recipes[cell.data].model_dump(mode="json"),
            folder=str(folder),
            device=cell.device,
            threads=1 if cell.device == "cpu" else cell.threads,
            workers=0 if cell.device == "cpu" else workers,
            parent=os.getpid(),
        )
        self._running.append(_Training(cell, folder, order))

    def _finish(self, training: _Training) -> None:
        problem, code = training.end()
        cell, took = training.cell, time.monotonic() - training.started
        name = f"{cell.model} on {cell.data}, seed {trained_seed(cell.weights)}"
        if problem and code == EXIT_INCOMPLETE:
            raise StoreError(f"{name}: {problem}; mend that and resume the run")
        if problem and code <= 0 and cell not in self._again:  # someone stopped it, or memory was short
            self._again.add(cell)
            self._waiting.append((training.folder, cell))
            self._progress.say(f"{name}: {printable(problem)}; it goes on later from its last state")
            return
        self._finished += 1
        if problem:
            with contextlib.suppress(StoreError):
                write_own(training.folder / FAILURE, json.dumps({"failed": problem}))
            result = f"failed: {printable(problem)}"
        else:
            top1 = training.last.get("top1")
            result = f"{training.steps} steps in {took:.0f} s" + ("" if top1 is None else f", top-1 {top1:.1%}")
        left = (time.monotonic() - self._started) / self._finished * (len(self._waiting) + len(self._running))
        done = self._before + self._finished
        self._progress.say(
            f"trained [{done}/{self._total}] {name}: {result}; about {left / 60:.0f} min left for the rest"
        )
