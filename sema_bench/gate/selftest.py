"""The gate put to the test: code against itself and against known slowdowns, alone and beside a busy neighbour."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from sema_bench.errors import WorkerError
from sema_bench.gate.arms import Arm, with_compiler_caches
from sema_bench.gate.run import Gate, GateSettings
from sema_bench.gate.trace import Trial
from sema_bench.machine.processes import child_environment
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling

#: Slowdowns of the head's forward pass; the first is none.
LEVELS = (0.0, 0.05, 0.10, 0.20)
LOADS = ("alone", "busy")


def run_trials(
    cells: Sequence[Cell],
    *,
    sampling: Sampling,
    settings: GateSettings,
    repeats: int,
    loads: Sequence[str] = LOADS,
    levels: Sequence[float] = LEVELS,
    done: Iterable[Trial] = (),
    told: Callable[[str], None] = lambda line: None,
    command: Sequence[str] = (),
    environments: Mapping[float, Mapping[str, str]] | None = None,
) -> Iterator[Trial]:
    """Yield the trials of ``repeats`` gates at every level under every load, in turns.

    Args:
        cells: what is gated, all of them in each gate.
        sampling: wall limits; every gate gets a seed of its own.
        settings: δ and budget of each gate; nothing is counted.
        repeats: gates for each level and load.
        loads, levels: which ones.
        done: trials of earlier; those gates are left out.
        told: told in a line what is going on.
        command, environments: of workers that pretend; for tests.
    """
    settings = dataclasses.replace(settings, counted=False)
    known = {trial.key for trial in done}
    missing = [
        key
        for key in ((load, level, n) for n in range(repeats) for load in loads for level in levels)
        if key not in known
    ]
    for load, level, number in missing:
        variables = dict((environments or {}).get(level, {}))
        base = Arm("base", "this code", command=command)
        head = Arm("head", f"this code +{level:.0%}", extra_work=level, command=command, environment=variables)
        where = f"{load}, +{level:.0%}, gate {number + 1} of {repeats}"
        with _neighbour(load), with_compiler_caches([base, head]) as arms:
            gate = Gate(
                arms[0],
                arms[1],
                cells,
                sampling=dataclasses.replace(sampling, seed=sampling.seed + number),
                settings=settings,
                told=lambda line, where=where: told(f"{where}; {line}"),  # type: ignore[misc]
            )
            result = gate.run()
        yield Trial(
            load,
            level,
            number,
            {cell.id: judgement.verdict for cell, judgement in result.judgements.items()},
            {cell.id: evidence for cell, evidence in result.evidence.items()},
        )


@contextlib.contextmanager
def _neighbour(load: str) -> Iterator[None]:
    """Under the load ``busy``, keep every CPU busy in bursts of random length while the body runs."""
    if load == "alone":
        yield
        return
    count = len(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "sema_bench.gate.neighbour", str(os.getpid())]
    processes = [subprocess.Popen([*command, str(seed)], env=child_environment()) for seed in range(count)]
    try:
        yield
        if any(process.poll() is not None for process in processes):
            raise WorkerError("the busy neighbour ended too early, so the machine was not as busy as it should be")
    finally:
        for process in processes:
            process.kill()
            process.wait()
