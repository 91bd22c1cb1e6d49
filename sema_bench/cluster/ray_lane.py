"""A lane on a machine of a Ray cluster: an agent in an actor that holds a GPU, or all CPUs of the machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sema_bench.cluster.agent import Agent, AgentSetup, group_to_json
from sema_bench.cluster.lanes import LaneLost
from sema_bench.driver.executor import Group
from sema_bench.errors import SemaBenchError
from sema_bench.spec.record import Environment, Record
from sema_bench.text.console import warn

#: Seconds after which a lane that is not ready shows a warning.
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster: its id in Ray, a name for people, its resources in Ray, and its environment."""

    node: str
    name: str
    cpus: int
    gpus: int
    environment: Environment


class RayLane:
    """A lane whose agent is an actor on one machine; ``needs`` are the ``num_cpus`` and ``num_gpus`` that it holds."""

    def __init__(self, setup: AgentSetup, machine: Machine, needs: Mapping[str, float]) -> None:
        self._setup, self._machine, self._needs = setup, machine, dict(needs)
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
                    warn(f"{self._setup.node}: waiting for other work there to end; the other lanes continue")
                    warned = True
            ray.get(ready)
        except RayError as problem:
            raise LaneLost(str(problem).partition("\n")[0]) from None

    def run(self, groups: Iterable[Group]) -> Iterator[Record]:
        for group in groups:
            try:
                agent = self._agent or self._start()
                stream = agent.measure.options(num_returns="streaming").remote(*group_to_json(*group))
                for reference in stream:
                    yield Record.from_json(ray.get(reference))
            except RayTaskError as problem:
                if isinstance(problem.cause, SemaBenchError):
                    raise problem.cause from None
                raise
            except RayError as problem:
                with contextlib.suppress(Exception):  # an unreachable agent may still live
                    ray.kill(self._agent)
                self._agent = None
                lives = not self._cancelled and self._machine.node in _living()
                reason = "its agent died" if isinstance(problem, RayActorError) else str(problem).partition("\n")[0]
                raise LaneLost(reason if lives else "the machine is gone", again=lives) from None

    def cancel(self) -> None:
        self._cancelled = True
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
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._machine.node, soft=False),
            max_restarts=0,
            **self._needs,
        )
        self._agent = actor.remote(self._setup.to_json())
        return self._agent


def _living() -> set[str]:
    with contextlib.suppress(Exception):  # the head itself may be gone
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return set()
