"""Test the gate: code against itself and against known slowdowns, alone, and beside busy neighbours or test runs."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from sema_bench.driver.device_lock import gpu_lock
from sema_bench.errors import UsageError, WorkerError
from sema_bench.gate.arms import Arm, root_of, with_compiler_caches
from sema_bench.gate.run import Gate
from sema_bench.gate.trace import Trial
from sema_bench.machine.processes import child_environment, kill_group
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.suite import GateTable

#: Slowdowns of the head's forward pass; the first is none.
LEVELS = (0.0, 0.05, 0.10, 0.20)
LOADS = ("alone", "busy", "tests")


def missing_trials(
    repeats: int, loads: Iterable[str], levels: Iterable[float], done: Iterable[Trial]
) -> list[tuple[str, float, int]]:
    """List (load, level, number) of ``repeats`` gates at every level under every load, except those in ``done``."""
    known = {trial.key for trial in done}
    planned = ((load, level, number) for number, load, level in itertools.product(range(repeats), loads, levels))
    return [key for key in planned if key not in known]


def run_trials(
    cells: Sequence[Cell],
    missing: Sequence[tuple[str, float, int]],
    *,
    sampling: Sampling,
    settings: GateTable,
    log: Callable[[str], None] = lambda line: None,
    command: Sequence[str] = Arm.command,
) -> Iterator[Trial]:
    """Yield a trial of all ``cells`` for each of ``missing``, seeded by its number; count nothing."""
    for count, (load, level, number) in enumerate(missing, start=1):
        step = f"{load}, +{level:.0%}, gate {count} of {len(missing)}"
        base = Arm("base", "this code", command=command)
        head = Arm("head", f"this code +{level:.0%}", extra_work=level, command=command)
        with _neighbour(load), with_compiler_caches([base, head]) as (base, head), gpu_lock(cells[0].device):
            result = Gate(
                base,
                head,
                cells,
                sampling=dataclasses.replace(sampling, seed=sampling.seed + number),
                settings=settings,
                log=lambda line, step=step: log(f"{step}; {line}"),  # type: ignore[misc]
            ).run(counted=False)
        verdicts = {cell.id: judgement.verdict for cell, judgement in result.judgements.items()}
        evidence = {cell.id: each for cell, each in result.evidence.items()}
        yield Trial(load, level, number, verdicts, evidence, result.took_s)


@contextlib.contextmanager
def _neighbour(load: str) -> Iterator[None]:
    """Load every CPU while the body runs: ``busy`` in bursts of random length, ``tests`` with tests of this project."""
    if load == "alone":
        yield
        return
    command = [sys.executable, "-m", "sema_bench.gate.neighbour", str(os.getpid())]
    folder = [str(_folder_of_tests())] if load == "tests" else []
    processes = [
        subprocess.Popen(
            [*command, str(seed), *folder], env=child_environment(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        for seed in range(len(os.sched_getaffinity(0)))
    ]
    try:
        yield
        if any(process.poll() is not None for process in processes):
            raise WorkerError("a neighbour ended too early, so the machine was not as busy as it should be")
    finally:
        for process in processes:
            kill_group(process)


def _folder_of_tests() -> Path:
    folder = root_of(Path()) / "tests" / "sema"
    if not folder.is_dir():
        raise UsageError(f"the load tests runs the tests of this project; {folder} is no folder")
    return folder
