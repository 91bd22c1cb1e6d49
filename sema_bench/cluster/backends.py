"""Backends: the machines that can measure a run. This machine, some of its GPUs, a Ray cluster, Slurm."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sema_bench.cluster.agent import AgentSetup
from sema_bench.cluster.agent_process import AgentProcess
from sema_bench.cluster.lanes import Lanes
from sema_bench.cluster.ray_address import check_ray_address
from sema_bench.driver.executor import Executor, Listener
from sema_bench.driver.local import LocalExecutor
from sema_bench.errors import UsageError
from sema_bench.machine.cpus import default_threads
from sema_bench.machine.devices import gpu_facts
from sema_bench.machine.environment import capture
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Environment
from sema_bench.spec.target import RunTarget


class Backend(Protocol):
    """Machines of one kind that measure the cells of a run."""

    @property
    def environment(self) -> Environment:
        """The environment of its workers."""

    @property
    def threads(self) -> int:
        """CPUs that a cell may use there."""

    @property
    def lanes(self) -> list[str]:
        """Names of the devices or machines that measure at the same time; none if a scheduler decides."""

    def executor(self, plan: Plan, run: Path, listener: Listener, worker_command: Sequence[str] = ()) -> Executor:
        """Return an executor for the cells of ``plan``; raise UsageError if the machines cannot measure them."""

    def close(self) -> None:
        """Release the machines."""


class ThisMachine:
    """The machine of the driver, or several of its GPUs; it builds ``models`` once, without allocating memory."""

    def __init__(self, models: Sequence[str] = (), devices: Sequence[int] = ()) -> None:
        environment = capture(models)
        self._visible = _visible(devices, environment)
        if devices:  # a lane sees one card, of the same kind in all lanes
            context = {**environment.context, "gpus": [gpu_facts(f"cuda:{devices[0]}", environment)]}
            environment = dataclasses.replace(environment, context=context)
        self.environment = environment

    @property
    def threads(self) -> int:
        return max(1, default_threads() // max(1, len(self._visible)))

    @property
    def lanes(self) -> list[str]:
        return [f"GPU {device}" for device in self._visible] or ["this machine"]

    def executor(self, plan: Plan, run: Path, listener: Listener, worker_command: Sequence[str] = ()) -> Executor:
        fingerprint, count = self.environment.fingerprint, len(self._visible)
        if not count:
            return LocalExecutor(plan, run, environment=fingerprint, listener=listener, worker_command=worker_command)
        setup = AgentSetup(plan, str(run), fingerprint, tuple(worker_command))
        agents = {
            lane: AgentProcess(
                dataclasses.replace(setup, node=lane, share=(number, count)), {"CUDA_VISIBLE_DEVICES": name}
            )
            for number, (lane, name) in enumerate(zip(self.lanes, self._visible.values(), strict=True))
        }
        return Lanes(agents)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def open_backend(
    target: RunTarget,
    *,
    root: Path,
    device: str,
    models: Sequence[str] = (),
    fingerprint: str | None = None,
) -> Backend:
    """Connect to the machines that ``target`` names; raise UsageError if they cannot measure on ``device``.

    A resumed run passes the ``fingerprint`` of the machines that it was started on.
    """
    if target.devices and device not in ("auto", "cuda", "cuda:0"):
        raise UsageError(f"--devices and device {device} contradict each other; drop one")
    if target.executor == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UsageError("--executor ray needs Ray, which is not installed; pip install 'sema-bench[ray]'")
        if device == "meta":
            raise UsageError("device meta runs nothing and needs no cluster; use --executor local")
        address = check_ray_address(target.ray_address)  # first: it sets variables that Ray reads when it is imported
        from sema_bench.cluster.ray_cluster import RayCluster

        return RayCluster(address, device, models, fingerprint=fingerprint)
    if target.executor == "slurm":
        if importlib.util.find_spec("submitit") is None:
            raise UsageError("--executor slurm needs submitit, which is not installed; pip install 'sema-bench[slurm]'")
        from sema_bench.cluster.slurm_cluster import SlurmCluster

        return SlurmCluster(root, target.slurm, target.jobs, models)
    return ThisMachine(models, target.devices)


def _visible(devices: Sequence[int], environment: Environment) -> dict[int, str]:
    """Map each of ``devices`` to its name in CUDA_VISIBLE_DEVICES: its UUID if that is known.

    Raise UsageError if one is missing, or if they are not alike.
    """
    if not devices:
        return {}
    count = int(environment.software.get("cuda_devices", 0))
    if not count:
        raise UsageError("--devices picks GPUs, and torch sees none on this machine")
    if max(devices) >= count or min(devices) < 0:
        raise UsageError(f"--devices: there are {count} GPUs here, 0 to {count - 1}; got {max(devices)}")
    outer = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    facts = {device: gpu_facts(f"cuda:{device}", environment) for device in devices}
    kinds = {str(facts[device].get("name")) for device in devices}
    if len(kinds) > 1:
        raise UsageError(f"--devices: these GPUs are not alike ({', '.join(sorted(kinds))}); cells would not compare")
    return {device: facts[device].get("uuid") or (outer[device] if outer else str(device)) for device in devices}
