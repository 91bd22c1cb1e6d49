"""Measure groups away from the driver: an agent has a LocalExecutor, set up from the run's plan.

It lives in a Ray actor, in a Slurm job, or in a process that is pinned to one GPU
(``python -m sema_bench.cluster.agent``, JSON lines in and out). It adds the name of its machine to its records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sema_bench.driver.device_lock import device_lock
from sema_bench.driver.local import LocalExecutor
from sema_bench.machine.processes import die_with_parent, let_libraries_warn
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan


@dataclass(frozen=True)
class AgentSetup:
    """Settings that start an agent; they convert to JSON and back.

    Attributes:
        plan: how to measure. It travels without its groups, which come one by one.
        run: folder of the run; the agent's machine must see it if cells have weights.
        environment: fingerprint of the machines that measure.
        worker_command: command line of a worker; tests pass another one.
        node: name of the agent in records; default: that of its machine.
        share: (k, n): take the k-th of n equal parts of the CPUs, so that agents of one machine share none.
    """

    plan: Plan
    run: str
    environment: str
    worker_command: tuple[str, ...] = ()
    node: str = ""
    share: tuple[int, int] = (0, 1)

    def to_json(self) -> str:
        plan = dataclasses.replace(self.plan, groups=(), recipes={}).to_json()
        return json.dumps({**vars(self), "plan": plan})

    @classmethod
    def from_json(cls, text: str) -> AgentSetup:
        body = json.loads(text)
        tuples = {name: tuple(body[name]) for name in ("worker_command", "share")}
        return cls(**{**body, **tuples, "plan": Plan.from_json(body["plan"])})


class Agent:
    """Measures groups, one after the other; ``setup`` is the JSON of an ``AgentSetup``."""

    def __init__(self, setup: str) -> None:
        self._setup = AgentSetup.from_json(setup)
        _keep_to(*self._setup.share)
        self._executor: LocalExecutor | None = None

    def ready(self) -> bool:
        """Answer as soon as the agent runs."""
        return True

    def measure(self, group: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> Iterator[str]:
        """Yield the JSON of each cell's record; ``skipped`` is cell id → reason."""
        cells = tuple(Cell(**cell) for cell in group)
        setup = self._setup
        on_cuda = cells[0].device.startswith("cuda")  # the executor locks a card
        with contextlib.nullcontext() if on_cuda else device_lock(cells[0].device):
            executor = self._executor = self._executor or LocalExecutor(
                setup.plan, Path(setup.run), environment=setup.environment, worker_command=setup.worker_command
            )
            for record in executor.run([(cells, {cell: skipped[cell.id] for cell in cells if cell.id in skipped})]):
                details = {**record.details, "node": setup.node or os.uname().nodename}
                yield dataclasses.replace(record, environment=setup.environment, details=details).to_json()

    def stop(self) -> None:
        """End all workers by force."""
        if self._executor is not None:
            self._executor.cancel()


def _keep_to(part: int, parts: int) -> None:
    """Keep this process and its workers to one of ``parts`` equal parts of the CPUs; if too few, all share them."""
    cpus = sorted(os.sched_getaffinity(0))
    size = len(cpus) // parts
    if parts > 1 and size:
        os.sched_setaffinity(0, cpus[part * size : (part + 1) * size])


def group_to_json(group: Sequence[Cell], skipped: Mapping[Cell, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Make the arguments of ``Agent.measure``."""
    return [dataclasses.asdict(cell) for cell in group], {cell.id: reason for cell, reason in skipped.items()}


def main(parent: int) -> None:
    """Serve a driver: read the setup, then one group per line; answer with one record per line and an empty line."""
    die_with_parent(parent)
    let_libraries_warn()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints is not an answer
        agent = Agent(sys.stdin.readline())
        for line in sys.stdin:
            for record in agent.measure(*json.loads(line)):
                print(record, file=answers, flush=True)
            print("", file=answers, flush=True)
        agent.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(int(sys.argv[1]))
