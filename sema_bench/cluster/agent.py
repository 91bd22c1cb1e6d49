"""Measure groups away from the driver: an agent has a LocalExecutor, set up from the run's plan.

It lives in an actor of Ray, in a job of Slurm, or in a process of its own that is pinned to one GPU
(``python -m sema_bench.cluster.agent``, JSON lines in and out). It stamps its records with the machine.
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

from sema_bench.cluster.device_lock import device_lock
from sema_bench.driver.local import LocalExecutor
from sema_bench.machine.processes import die_with_parent, let_libraries_warn
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan


@dataclass(frozen=True)
class AgentSetup:
    """How an agent is started; goes to JSON and back.

    Attributes:
        plan: what to measure and how. It travels without its groups, which come one by one.
        run: folder of the run; needed on the agent's machine where cells have weights.
        environment: fingerprint of the machines that measure.
        worker_command: how to start a worker; tests pass one of their own.
    """

    plan: Plan
    run: str
    environment: str
    worker_command: tuple[str, ...] = ()

    def to_json(self) -> str:
        plan = dataclasses.replace(self.plan, groups=(), recipes={}).to_json()
        return json.dumps({**vars(self), "plan": plan})

    @classmethod
    def from_json(cls, text: str) -> AgentSetup:
        body = json.loads(text)
        plan, command = Plan.from_json(body["plan"]), tuple(body["worker_command"])
        return cls(plan, body["run"], body["environment"], command)


class Agent:
    """Measures the groups that it is given, one after the other.

    Args:
        setup: JSON of an ``AgentSetup``.
        node: name of this machine in records.
        share: (k, n): take the k-th of n equal parts of the CPUs, so that agents of one machine keep apart.
    """

    def __init__(self, setup: str, node: str, share: tuple[int, int] = (0, 1)) -> None:
        _keep_to(*share)
        self._setup = AgentSetup.from_json(setup)
        self._node = node
        self._executor: LocalExecutor | None = None

    def ready(self) -> bool:
        """Answer, so that whoever asks knows that it runs."""
        return True

    def measure(self, group: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> Iterator[str]:
        """Yield the JSON of each cell's record; ``skipped`` is cell id → reason."""
        cells = [Cell(**cell) for cell in group]
        setup = self._setup
        with device_lock(cells[0].device):
            executor = self._executor = self._executor or LocalExecutor(
                setup.plan, Path(setup.run), environment=setup.environment, worker_command=setup.worker_command
            )
            executor.submit(cells, {cell: skipped[cell.id] for cell in cells if cell.id in skipped})
            for record in executor.records():
                details = {**record.details, "node": self._node}
                yield dataclasses.replace(record, environment=setup.environment, details=details).to_json()

    def stop(self) -> None:
        """End all workers by force."""
        if self._executor is not None:
            self._executor.cancel()


def _keep_to(part: int, parts: int) -> None:
    """Let this process and its workers run on one of ``parts`` equal parts of the CPUs; too few are shared by all."""
    cpus = sorted(os.sched_getaffinity(0))
    size = len(cpus) // parts
    if parts > 1 and size:
        os.sched_setaffinity(0, cpus[part * size : (part + 1) * size])


def group_to_json(group: Sequence[Cell], skipped: Mapping[Cell, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the arguments of ``Agent.measure``."""
    return [dataclasses.asdict(cell) for cell in group], {cell.id: reason for cell, reason in skipped.items()}


def main(parent: int) -> None:
    """Serve a driver: the first line is {"setup", "node", "share"}, each further one a group; one answer per record."""
    die_with_parent(parent)
    let_libraries_warn()
    agent: Agent | None = None
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # prints of a library are no answers
        for line in sys.stdin:
            body = json.loads(line)
            if agent is None:
                agent = Agent(body["setup"], body["node"], tuple(body["share"]))
                continue
            for record in agent.measure(body["group"], body["skipped"]):
                print(record, file=answers, flush=True)
            print("", file=answers, flush=True)
        if agent is not None:
            agent.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(int(sys.argv[1]))
