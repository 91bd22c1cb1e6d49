"""A simulated machine for the real sampler: a pass takes the model's latency times the machine's noise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import ignore
from sema_bench.driver.sampler import InterleavedSampler
from sema_bench.driver.worker_process import CellFailure
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling
from sema_bench.worker.protocol import Prepare, Prepared, Sample, Samples

#: (time, chance) → factor on the time of a pass.
Noise = Callable[[float, random.Random], float]


def quiet(now: float, chance: random.Random) -> float:
    return math.exp(chance.gauss(0, 0.01))


def drifting(now: float, chance: random.Random) -> float:
    """Slow the machine down and speed it up again, by 30 % in 20 s."""
    return (1 + 0.3 * math.sin(now / 20)) * math.exp(chance.gauss(0, 0.01))


class Bursts:
    """A neighbour takes the machine for a second or two, every ten seconds."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        edges, now = [0.0], 0.0
        while now < 2000:
            now += chance.expovariate(1 / (1.5 if len(edges) % 2 == 0 else 8.0))
            edges.append(now)
        self._bursts = list(pairwise(edges))[1::2]

    def __call__(self, now: float, chance: random.Random) -> float:
        burst = any(start <= now < end for start, end in self._bursts)
        return (1.6 if burst else 1.0) * math.exp(chance.gauss(0, 0.01))


class Simulated:
    """A pool of workers on a machine with ``noise``; only passes advance its clock.

    The models in ``spread`` have extra noise. A worker that does not answer within 40 s is stopped, as with a limit
    of 4 s per cell.
    """

    def __init__(
        self,
        latencies: dict[str, float],
        noise: Noise,
        *,
        seed: int = 0,
        cold: float = 1.0,
        spread: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.latencies, self._noise, self._cold, self._spread = latencies, noise, cold, spread
        self._chance = random.Random(seed)
        self.now = 0.0
        self.visits: list[str] = []
        self.fails: dict[str, int] = {}  # model → visits after which it crashes

    def start(self, role: str, cell: Cell) -> None: ...

    def has(self, role: str, cell: Cell) -> bool:
        return False

    def workload(self, cell: Cell) -> Any:
        return cell

    def time_left(self, attempt: CellAttempt) -> float:
        return 40.0 - (attempt.spent_s - attempt.counted_from_s)

    def ask(self, role: str, attempt: CellAttempt, request: Any) -> Any:
        started, left = self.now, self.time_left(attempt)
        answer = self._answer(attempt.cell.model, request)
        attempt.spent_s += self.now - started
        if self.now - started > left:
            raise CellFailure("timeout", f"no answer within {left:.1f} s")
        return answer

    def _answer(self, model: str, request: Any) -> Any:
        if isinstance(request, Prepare):
            first = self._pass(model)
            warm = tuple(self._pass(model) for _ in range(3)) if first < request.time_limit_s else ()
            return Prepared(first_forward_s=first, warmup_s=warm, warm=bool(warm))
        assert isinstance(request, Sample)
        if self.visits.count(model) >= self.fails.get(model, math.inf):
            raise CellFailure("crashed", "it died")
        cold = self._cold if model not in self.visits else 1.0
        self.visits.append(model)
        for _ in range(request.settle):
            self._pass(model)
        wall = tuple(cold * self._pass(model) for _ in range(request.count))
        return Samples(wall, wall, (0,) * len(wall), (0,) * len(wall))

    def _pass(self, model: str) -> float:
        took = self.latencies[model] * self._noise(self.now, self._chance)
        took *= math.exp(self._chance.gauss(0, self._spread.get(model, 0.0)))
        self.now += took
        return took


def measure(pool: Simulated, *groups: Sequence[str], yardstick: Cell | None = None, **limits: float) -> list[Record]:
    """Measure ``groups`` of models with one sampler; without ``groups``, measure the whole pool as one group."""
    sampler = InterleavedSampler(pool, Sampling(**limits), ignore, yardstick=yardstick)  # type: ignore[arg-type]
    records = []
    for models in groups or [list(pool.latencies)]:
        attempts = [CellAttempt(Cell(model=model, height=224, width=224)) for model in models]
        for attempt in attempts:
            sampler.prepare(attempt)
        done = {attempt.cell.model: attempt.record(failure) for attempt, failure in sampler.sample(attempts)}
        records += [done[model] for model in models]
    return records


def sampled_s(record: Record) -> float:
    return math.fsum(record.measurements["latency_s"].samples)
