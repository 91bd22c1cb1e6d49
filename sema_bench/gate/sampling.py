"""Take one batch of the gate: fresh processes of both arms visit the same cells in the same order, sampled in turns."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Callable, Iterator, Sequence

from sema_bench.driver.sampler import SETTLE_FROM_COUNT
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.gate.arms import Arm
from sema_bench.gate.batch import Batch, Side, batch_of, uncertainty
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.protocol import Prepare, Release, Sample, WorkloadSpec

#: How long a turn of an arm takes: short, so that a burst of a neighbour hits all arms of a round.
_TURN_S = 0.05
#: Rounds continue until the ratio is known to this standard error, about the size of two processes' luck: then a fresh
#: batch tells more than more rounds. The decision uses how far rounds differ, never the ratio itself.
_KNOWN_TO = 0.01
_FEWEST_ROUNDS, _MOST_ROUNDS = 6, 16
#: A short warm-up will do: a cold round or two hardly move a median.
_WARMUP_S = 0.3


@dataclasses.dataclass(frozen=True)
class Failure:
    """A cell that an ``arm`` (``base``, ``head`` or ``both``) could not run; ``unknown``: it has no such model."""

    arm: str
    reason: str
    unknown: bool = False


def take_batch(
    arms: Sequence[Arm],
    cells: Sequence[Cell],
    *,
    sampling: Sampling,
    chance: random.Random,
    log: Callable[[Cell], None] = lambda cell: None,
) -> Iterator[tuple[Cell, Batch | Failure]]:
    """Yield the batch of each cell, or why there is none; ``log`` is called before each cell.

    The cells share allocator and threads; ``chance`` draws the order of the arms within each round.
    """
    workers: dict[str, WorkerProcess] = {}
    try:
        for cell in cells:
            log(cell)
            for arm in _shuffled(arms, chance):
                if arm.name not in workers:
                    workers[arm.name] = arm.start(cell)
            yield cell, _one_cell(arms, workers, cell, sampling, chance)
    finally:
        for worker in workers.values():
            worker.kill()


def workload_of(cell: Cell, sampling: Sampling) -> WorkloadSpec:
    """Describe a cell to a worker of an arm, which uses its own version of a model file."""
    return WorkloadSpec(dataclasses.replace(cell, model=cell.model.partition("@")[0]), sampling.seed)


def _one_cell(
    arms: Sequence[Arm], workers: dict[str, WorkerProcess], cell: Cell, sampling: Sampling, chance: random.Random
) -> Batch | Failure:
    """Sample one cell in all arms; a worker that failed is replaced for the next cell."""
    limit = sampling.wall_limit_s(cell.mode)
    request = Prepare(workload_of(cell, sampling), sampling.time_limit_s, _WARMUP_S)
    latencies: dict[str, float] = {}
    turns: dict[str, list[Side]] = {arm.name: [] for arm in arms}
    arm = arms[0]
    try:
        for arm in _shuffled(arms, chance):
            slowed = dataclasses.replace(request, extra_work=arm.extra_work)
            prepared = workers[arm.name].ask(slowed, timeout_s=limit)
            latencies[arm.name] = min(prepared.warmup_s or [prepared.first_forward_s])
        count = max(1, round(_TURN_S / min(latencies.values())))
        sample = Sample(count, settle=1 if count >= SETTLE_FROM_COUNT else 0)
        while not _is_enough(turns["base"], turns["head"]):
            for arm in _shuffled(arms, chance):
                samples = workers[arm.name].ask(sample, timeout_s=limit)
                times = samples.wall_s if cell.device.startswith("cuda") else samples.cpu_s
                turns[arm.name].append(Side(statistics.median(times), statistics.median(samples.wall_s)))
        for arm in arms:
            workers[arm.name].ask(Release(), timeout_s=limit)
        return batch_of(turns["base"], turns["head"])
    except CellFailure as failure:
        workers.pop(arm.name).kill()
        reason = f"{failure.status}: {failure}"
        other = "base" if arm.name == "head" else "head"
        if other not in latencies and (also := _failure_of(other, workers, request, limit)):
            return Failure("both", f"{reason}; {other}: {also}")
        return Failure(arm.name, reason, unknown=arm.name == "base" and bool(failure.details.get("unknown")))
    except ValueError as problem:
        return Failure("both", str(problem))


def _is_enough(base: Sequence[Side], head: Sequence[Side]) -> bool:
    rounds = len(base)
    return rounds >= _MOST_ROUNDS or (rounds >= _FEWEST_ROUNDS and uncertainty(base, head) <= _KNOWN_TO)


def _shuffled(arms: Sequence[Arm], chance: random.Random) -> list[Arm]:
    return chance.sample(arms, len(arms))


def _failure_of(name: str, workers: dict[str, WorkerProcess], request: Prepare, limit_s: float) -> str:
    """Try the arm ``name`` as well; return why it fails, or "" if it runs the cell that the other does not."""
    try:
        workers[name].ask(request, timeout_s=limit_s)
    except CellFailure as failure:
        workers.pop(name).kill()
        return f"{failure.status}: {failure}"
    return ""
