"""One batch of the gate: fresh processes of both arms that visit the same cells in the same order, sampled in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.gate.arms import Arm
from sema_bench.gate.batch import Batch, Side, batch_of, uncertainty
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling

#: How long a turn of an arm takes: short, so that a burst of a neighbour hits all arms of a round.
_TURN_S = 0.05
#: Rounds go on until the arms' ratios are known to this standard error, which is less than the luck of a process is
#: worth. That looks at how far rounds differ and never at the ratio itself.
_KNOWN_TO = 0.005
_FEWEST_ROUNDS, _MOST_ROUNDS = 12, 48
#: An untimed pass opens a turn (another process has used the caches since) where it costs little.
_SETTLE_FROM_COUNT = 5
#: A cold round or two are no part of a median.
_WARMUP_S = 0.3


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell that an arm could not run.

    Attributes:
        arm: ``base``, ``head`` or ``both``.
        reason: status and message.
        unknown: whether the arm has no such model; anything else may be the machine's fault.
    """

    arm: str
    reason: str
    unknown: bool = False


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
            for place in _shuffled(arms, chance):
                if workers[place] is None:
                    workers[place] = arms[place].start(cell)
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
    request: dict[str, Any] = {
        "timeout_s": limit,
        "cell": request_of(cell),
        "seed": sampling.seed,
        "time_limit_s": sampling.time_limit_s,
        "warmup_limit_s": _WARMUP_S,
    }
    latencies: dict[str, float] = {}
    place = 0
    try:
        for place in _shuffled(arms, chance):
            worker, arm = workers[place], arms[place]
            assert worker is not None
            worker.wait_until_ready()
            answer = worker.ask("prepare", extra_work=arm.extra_work, **request)
            latencies[arm.name] = min(answer["warmup_s"] or [answer["first_forward_s"]])
        count = max(1, round(_TURN_S / min(latencies.values())))
        settle = 1 if count >= _SETTLE_FROM_COUNT else 0
        turns: list[list[Side]] = [[] for _ in arms]
        while not _is_enough(turns):
            for place in _shuffled(arms, chance):
                worker = workers[place]
                assert worker is not None
                answer = worker.ask("sample", timeout_s=limit, count=count, settle=settle)
                times = answer["wall_s"] if cell.device.startswith("cuda") else answer["cpu_s"]
                turns[place].append(Side(statistics.median(times), statistics.median(answer["wall_s"])))
        for place in range(len(arms)):
            worker = workers[place]
            assert worker is not None
            worker.ask("release", timeout_s=limit)
        return batch_of(*turns)
    except CellFailure as failure:
        _give_up(workers, place)
        reason = f"{failure.status}: {failure}"
        if arms[place].name == "head":
            return Failure("head", reason)
        if "head" not in latencies and (also := _head_fails(arms, workers, request)):
            return Failure("both", f"{reason}; head: {also}")
        return Failure("base", reason, unknown=bool(failure.details.get("unknown")))
    except ValueError as problem:
        return Failure("both", str(problem))


def _is_enough(turns: Sequence[Sequence[Side]]) -> bool:
    base, *others = turns
    if not _FEWEST_ROUNDS <= len(base) < _MOST_ROUNDS:
        return len(base) >= _MOST_ROUNDS
    return max(uncertainty(base, other) for other in others) <= _KNOWN_TO


def _shuffled(arms: Sequence[Arm], chance: random.Random) -> list[int]:
    return chance.sample(range(len(arms)), len(arms))


def request_of(cell: Cell) -> dict[str, Any]:
    """Return a cell as a worker of an arm is asked for it: a model file is the arm's own, whatever its digest."""
    body = dataclasses.asdict(cell)
    return {**body, "model": body["model"].partition("@")[0]}


def _head_fails(arms: Sequence[Arm], workers: list[WorkerProcess | None], request: dict[str, Any]) -> str | None:
    """Return what the head, too, fails of; None if it runs the cell that the base does not."""
    place = next(place for place, arm in enumerate(arms) if arm.name == "head")
    worker = workers[place]
    try:
        if worker:
            worker.wait_until_ready()
            worker.ask("prepare", **request)
    except CellFailure as failure:
        _give_up(workers, place)
        return f"{failure.status}: {failure}"
    return None


def _give_up(workers: list[WorkerProcess | None], place: int) -> None:
    worker = workers[place]
    if worker:
        worker.kill()
    workers[place] = None


def _end(workers: Sequence[WorkerProcess | None]) -> None:
    for worker in workers:
        if worker:
            worker.kill()
