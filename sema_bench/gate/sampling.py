"""One batch of the gate: fresh processes of both arms that visit the same cells in the same order, sampled in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sema_bench.gate.arms import Arm
from sema_bench.gate.rule import Batch, batch_of
from sema_bench.plan import Sampling
from sema_bench.schema import Cell
from sema_bench.worker_process import CellFailure, WorkerProcess

#: Turns that each arm gets for one cell, and how long one takes: short, so that a burst of a neighbour hits all arms.
TURNS, TURN_S = 12, 0.05
#: An untimed pass opens a turn (another process has used the caches since) where it costs little.
_SETTLE_FROM_COUNT = 5
_WARMUP_S = 1.0


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell that an arm could not run.

    Attributes:
        arm: ``base`` or ``head``.
        reason: status and message.
    """

    arm: str
    reason: str


def take_batch(
    arms: Sequence[Arm],
    cells: Sequence[Cell],
    *,
    sampling: Sampling,
    chance: random.Random,
    told: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[tuple[Cell, Batch | Failure]]:
    """Yield what each cell gave.

    Args:
        arms: base and head, and the base again where the noise floor is wanted.
        cells: of one allocator and number of threads.
        sampling: seed and wall limits.
        chance: order of the arms within each round.
        told: called before each cell.
    """
    with contextlib.ExitStack() as stack:
        workers: list[WorkerProcess | None] = [None] * len(arms)
        stack.callback(_end, workers)
        for cell in cells:
            told(cell)
            for place, arm in enumerate(arms):
                if workers[place] is None:
                    workers[place] = arm.start(cell)
            yield cell, _one_cell(arms, workers, cell, sampling, chance)


def _one_cell(
    arms: Sequence[Arm],
    workers: list[WorkerProcess | None],
    cell: Cell,
    sampling: Sampling,
    chance: random.Random,
) -> Batch | Failure:
    """Sample one cell in all arms; a worker that failed is given up, and replaced for the next cell."""
    limit = sampling.wall_limit_s(cell.mode)
    latencies = []
    place = 0
    try:
        for place, arm in enumerate(arms):
            worker = workers[place]
            assert worker is not None
            worker.wait_until_ready()
            answer = worker.ask(
                "prepare",
                timeout_s=limit,
                cell=request_of(cell),
                seed=sampling.seed,
                time_limit_s=sampling.time_limit_s,
                warmup_limit_s=_WARMUP_S,
                extra_work=arm.extra_work,
            )
            latencies.append(min(answer["warmup_s"] or [answer["first_forward_s"]]))
        count = max(1, round(TURN_S / min(latencies)))
        samples: list[tuple[list[float], list[float]]] = [([], []) for _ in arms]
        order = list(range(len(arms)))
        for _ in range(TURNS):
            chance.shuffle(order)
            for place in order:
                worker = workers[place]
                assert worker is not None
                settle = 1 if count >= _SETTLE_FROM_COUNT else 0
                answer = worker.ask("sample", timeout_s=limit, count=count, settle=settle)
                times = answer["wall_s"] if cell.device.startswith("cuda") else answer["cpu_s"]
                samples[place][0].extend(times)
                samples[place][1].extend(answer["wall_s"])
        for place in order:
            worker = workers[place]
            assert worker is not None
            worker.ask("release", timeout_s=limit)
    except CellFailure as failure:
        worker = workers[place]
        if worker:
            worker.kill()
        workers[place] = None
        return Failure(arms[place].name, f"{failure.status}: {failure}")
    try:
        return batch_of(*samples)
    except ValueError as problem:
        return Failure("both", str(problem))


def request_of(cell: Cell) -> dict[str, Any]:
    """Return a cell as a worker of an arm is asked for it: a model file is the arm's own, whatever its digest."""
    body = dataclasses.asdict(cell)
    return {**body, "model": body["model"].partition("@")[0]}


def _end(workers: Sequence[WorkerProcess | None]) -> None:
    for worker in workers:
        if worker:
            worker.kill()
