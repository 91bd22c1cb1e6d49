"""The places where the cells of a run can be measured: this machine, some of its GPUs, a Ray cluster, Slurm."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from sema_bench.cluster.agent import Assignment
from sema_bench.cluster.agent_process import AgentProcess
from sema_bench.cluster.lanes import Lanes
from sema_bench.driver.executor import Executor, Listener
from sema_bench.errors import UsageError
from sema_bench.machine.cpus import default_threads
from sema_bench.machine.environment import capture
from sema_bench.spec.record import Environment
from sema_bench.spec.target import RunTarget


class Backend(Protocol):
    """A place where the cells of a run are measured, on machines that are alike."""

    @property
    def environment(self) -> Environment:
        """What its workers measure in."""

    @property
    def threads(self) -> int:
        """CPUs that a cell may use there."""

    @property
    def lanes(self) -> list[str]:
        """Names of what measures at the same time; none where the scheduler decides."""

    def executor(self, assignment: Assignment, listener: Listener) -> Executor:
        """Return what measures the cells of a run."""

    def close(self) -> None:
        """Let go of it."""


class ThisMachine:
    """The machine of the driver, or several of its GPUs.

    Args:
        models: registry names that are to be measured; each is built once, without memory.
        devices: GPUs to use at once.
        warn: told of agents that died.

    Raises:
        UsageError: a GPU is not there, or they are not alike.
    """

    def __init__(self, models: Sequence[str] = (), devices: Sequence[int] = (), *, warn: Callable[[str], None]) -> None:
        self.environment = capture(models)
        self._warn = warn
        self._visible = _visible(devices, self.environment)

    @property
    def threads(self) -> int:
        return max(1, default_threads() // max(1, len(self._visible)))

    @property
    def lanes(self) -> list[str]:
        return [f"GPU {name}" for name in self._visible] or ["this machine"]

    def executor(self, assignment: Assignment, listener: Listener) -> Executor:
        if not self._visible:
            return assignment.executor(listener)
        agents = {
            lane: AgentProcess(assignment, lane, {"CUDA_VISIBLE_DEVICES": name}, share=(number, len(self._visible)))
            for number, (lane, name) in enumerate(zip(self.lanes, self._visible, strict=True))
        }
        return Lanes(agents, warn=self._warn)

    def close(self) -> None:
        """Nothing is held between runs."""


def open_backend(
    target: RunTarget,
    *,
    root: Path,
    device: str,
    models: Sequence[str] = (),
    fingerprint: str | None = None,
    warn: Callable[[str], None],
    said: Callable[[str], None],
) -> Backend:
    """Go where the cells are to run.

    Args:
        where: what the user asked for.
        root: results folder.
        device: as the suite names it.
        models: registry names that are to be measured.
        fingerprint: of the machines that a run was begun on.
        warn: told what is left out or lost; said: told what is waited for.

    Raises:
        UsageError: it is not there, or cannot measure what is asked for.
    """
    if target.devices and device not in ("auto", "cuda", "cuda:0"):
        raise UsageError(f"--devices says which GPUs, and device {device} says something else; drop one")
    if target.executor == "ray":
        from sema_bench.cluster.ray_cluster import RayCluster

        return RayCluster(target.ray_address, device, models, fingerprint=fingerprint, warn=warn)
    if target.executor == "slurm":
        from sema_bench.cluster.slurm_cluster import SlurmCluster

        return SlurmCluster(root, target.slurm, target.jobs, models, said=said)
    return ThisMachine(models, target.devices, warn=warn)


def _visible(devices: Sequence[int], environment: Environment) -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES has to be for each of ``devices``.

    Raises:
        UsageError: one is not there, or they are not alike.
    """
    if not devices:
        return []
    count = int(environment.software.get("cuda_devices", 0))
    if not count:
        raise UsageError("--devices picks GPUs, and torch sees none on this machine")
    if max(devices) >= count or min(devices) < 0:
        raise UsageError(f"--devices: there are {count} GPUs here, 0 to {count - 1}; got {max(devices)}")
    outer = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = [outer[device] if outer else str(device) for device in devices]
    cards = environment.hardware.get("gpus", [])
    kinds = {cards[int(name)]["name"] for name in names if name.isdecimal() and int(name) < len(cards)}
    if len(kinds) > 1:
        raise UsageError(f"--devices: these GPUs are not alike ({', '.join(sorted(kinds))}); cells would not compare")
    return names
