"""A lane on a machine of a Ray cluster: an agent in an actor that holds a GPU, or all CPUs of the machine."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sema_bench.cluster.agent import Agent, AgentSetup, group_to_json
from sema_bench.cluster.lanes import Group, LaneLost
from sema_bench.errors import SemaBenchError
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Environment, Record

#: A lane that is not ready after this time shows a warning, in seconds.
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster.

    Attributes:
        node: Ray's identity of it.
        name: host name, with a part of ``node`` where several share one.
        cpus, gpus: how many Ray gives out there.
        environment: of its workers.
    """

    node: str
    name: str
    cpus: int
    gpus: int
    environment: Environment


class RayLane:
    """An executor whose groups are measured by an agent in an actor on one machine, started with the first group.

    Args:
        setup: how the agent is started.
        name: its name in records.
        machine: where it runs.
        needs: ``num_cpus`` and ``num_gpus`` that the actor holds.
        share: see ``Agent``.
        warn: shows that it waits for others' work to end.
    """

    width = 1

    def __init__(
        self,
        setup: AgentSetup,
        name: str,
        machine: Machine,
        needs: Mapping[str, float],
        *,
        share: tuple[int, int],
        warn: Callable[[str], None],
    ) -> None:
        self._setup, self._name, self._machine, self._needs = setup, name, machine, dict(needs)
        self._share, self._warn = share, warn
        self._queue: deque[Group] = deque()
        self._agent: Any = None
        self._cancelled = False

    def open(self) -> None:
        """Start the agent and wait until it runs: other work may hold its CPUs or GPU."""
        try:
            ready = self._start().ready.remote()
            warned = False
            while not ray.wait([ready], timeout=PATIENCE_S)[0]:
                if self._cancelled:
                    return
                if not warned:
                    self._warn(f"{self._name}: waiting for other work on it to end; the rest goes on without it")
                    warned = True
            ray.get(ready)
        except RayError as problem:
            raise LaneLost(str(problem).partition("\n")[0]) from None

    def submit(self, group: Sequence[Cell], skipped: Mapping[Cell, str]) -> None:
        self._queue.append((tuple(group), skipped))

    def records(self) -> Iterator[Record]:
        while self._queue:
            group, skipped = self._queue.popleft()
            try:
                agent = self._agent or self._start()
                stream = agent.measure.options(num_returns="streaming").remote(*group_to_json(group, skipped))
                for reference in stream:
                    yield Record.from_json(ray.get(reference))
            except RayTaskError as problem:
                cause = problem.cause
                if isinstance(cause, SemaBenchError):
                    raise cause from None
                raise
            except RayError as problem:
                with contextlib.suppress(Exception):  # one that cannot be reached may still live
                    ray.kill(self._agent)
                self._agent = None
                lives = not self._cancelled and self._machine.node in _living()
                reason = "its agent died" if isinstance(problem, RayActorError) else str(problem).partition("\n")[0]
                raise LaneLost(reason if lives else "the machine is gone", again=lives) from None

    def cancel(self) -> None:
        self._cancelled = True
        self._queue.clear()
        if self._agent is not None:
            with contextlib.suppress(Exception):  # it may be dead, and so may the cluster
                ray.kill(self._agent)
            self._agent = None

    def close(self) -> None:
        self.cancel()

    def _start(self) -> Any:
        if self._cancelled:
            raise LaneLost("the run was stopped")
        actor = ray.remote(Agent).options(
            scheduling_strategy=on_node(self._machine.node), max_restarts=0, **self._needs
        )
        self._agent = actor.remote(self._setup.to_json(), self._name, self._share)
        return self._agent


def _living() -> set[str]:
    with contextlib.suppress(Exception):  # the head itself may be gone
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return set()


def on_node(node: str) -> Any:
    """Return the strategy that places a task or an actor on one node, or nowhere."""
    return NodeAffinitySchedulingStrategy(node, soft=False)
