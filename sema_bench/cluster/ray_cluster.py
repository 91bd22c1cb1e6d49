"""Measure cells on the machines of a Ray cluster: one agent per GPU, or per machine for CPU cells, each an actor.

Only machines that are alike (same hardware, software and code, by their fingerprints) measure in one run. The kind
with the most devices measures; a warning names the others. An actor holds its GPU, or every CPU of its machine, for as
long as the run lasts. An actor that dies is started again if its machine is still alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sema_bench.cluster.agent import AgentSetup
from sema_bench.cluster.lanes import Lanes
from sema_bench.cluster.ray_lane import Machine, RayLane
from sema_bench.driver.executor import Listener
from sema_bench.errors import UsageError, WorkerError
from sema_bench.machine.environment import capture, code_hash, environment_from_json, environment_json
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Environment
from sema_bench.text.console import warn

#: Importing torch from a cold network disk takes minutes; a machine that is busy with other work answers even later.
DESCRIBE_S = 180.0


class RayCluster:
    """A connection to a Ray cluster, and those of its machines that a run measures on.

    Without an ``address``, start a cluster of this machine alone, which ends with the process. Each machine builds the
    ``models`` once, without memory. UsageError: it cannot be joined, or no machine has the device and this code.
    """

    def __init__(
        self, address: str | None, device: str, models: Sequence[str] = (), *, fingerprint: str | None = None
    ) -> None:
        self._silence = contextlib.ExitStack()
        _connect(address)
        # Ray prints pages of node events to stdout; the lanes warn about those that concern the run.
        sink = self._silence.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 - closed with the cluster
        self._silence.enter_context(contextlib.redirect_stdout(sink))
        try:
            self._on_gpu, machines = _described(device, models)
            self.machines = self._alike(machines, fingerprint)
        except BaseException:
            self.close()
            raise

    @property
    def environment(self) -> Environment:
        return self.machines[0].environment

    @property
    def threads(self) -> int:
        """CPUs that one lane of the smallest machine may use."""
        share = min(machine.cpus // (machine.gpus if self._on_gpu else 1) for machine in self.machines)
        return max(1, min(share, int(self.environment.hardware["cpus"])))

    @property
    def lanes(self) -> list[str]:
        return [name for name, _ in self._slots]

    @property
    def _slots(self) -> list[tuple[str, Machine]]:
        """Name and machine of each lane."""
        if not self._on_gpu:
            return [(machine.name, machine) for machine in self.machines]
        return [(f"{machine.name} GPU {k}", machine) for machine in self.machines for k in range(machine.gpus)]

    def executor(self, plan: Plan, run: Path, listener: Listener, worker_command: Sequence[str] = ()) -> Lanes:
        """Make a lane for each GPU or machine; raise UsageError if a machine lacks files that cells need."""
        if "accuracy" in plan.probes:
            self._check_sees(str(run))
        setup = AgentSetup(plan, str(run), self.environment.fingerprint, tuple(worker_command))
        lanes = {}
        for number, (name, machine) in enumerate(self._slots):
            count = machine.gpus if self._on_gpu else 1
            needs = {"num_cpus": machine.cpus / count, "num_gpus": int(self._on_gpu)}
            lanes[name] = RayLane(dataclasses.replace(setup, node=name, share=(number % count, count)), machine, needs)
        return Lanes(lanes)

    def close(self) -> None:
        """Leave the cluster; end it if it was started for this process."""
        ray.shutdown()
        self._silence.close()

    def _check_sees(self, run: str) -> None:
        sees = ray.remote(num_cpus=0)(_sees)
        asked = [
            sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(machine.node, soft=False)).remote(run)
            for machine in self.machines
        ]
        blind = [machine.name for machine, seen in zip(self.machines, ray.get(asked), strict=True) if not seen]
        if blind:
            raise UsageError(
                f"accuracy needs weights and data, and {', '.join(blind)} does not see {run}; "
                "choose a results folder that every machine sees (--out)"
            )

    def _alike(self, machines: list[Machine], wanted: str | None) -> list[Machine]:
        """Return the machines of the ``wanted`` kind, or else of the kind with the most devices."""
        mine = code_hash()
        other = [machine for machine in machines if machine.environment.context.get("code") != mine]
        if other:
            raise UsageError(
                f"{', '.join(sorted({machine.name for machine in other}))}: another version of sema-bench than here; "
                "install the same one everywhere"
            )
        kinds = Counter[str]()
        for machine in machines:
            kinds[machine.environment.fingerprint] += machine.gpus if self._on_gpu else 1
        kind = wanted if wanted in kinds else kinds.most_common(1)[0][0]
        left_out = [machine.name for machine in machines if machine.environment.fingerprint != kind]
        if left_out:
            warn(
                f"left out {', '.join(left_out)}: their hardware or software differs from that of the "
                f"{len(machines) - len(left_out)} that measure"
            )
        return [machine for machine in machines if machine.environment.fingerprint == kind]


def _connect(address: str | None) -> None:
    """Join the cluster at ``address``, or start one; raise UsageError if that fails."""
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        with _silent_stderr():  # Ray repeats the error below there, once a second
            ray.init(**quiet, **({"address": address} if address else {"include_dashboard": False}))
    except (ConnectionError, RuntimeError, ValueError) as problem:
        reason = str(problem).partition("\n")[0].rstrip(". ")
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        raise UsageError(
            f"cannot join the Ray cluster at {address or 'this machine'}: {reason}. Versions of Ray and Python, "
            f"RAY_AUTH_MODE ({mode} here) and the token have to be the same everywhere"
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray has replaced it


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard the standard error of this process, including that of native code."""
    sys.stderr.flush()
    stderr = os.dup(2)
    try:
        with Path(os.devnull).open("w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _described(device: str, models: Sequence[str]) -> tuple[bool, list[Machine]]:
    """Decide whether to measure on GPUs; return that, and every machine that could measure."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    on_gpu = device.startswith("cuda") or (device == "auto" and bool(with_gpus))
    able = with_gpus if on_gpu else [node for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    if not able:
        kind = "GPU" if on_gpu else "CPU"
        raise UsageError(f"none of the {len(nodes)} machines of this Ray cluster offers a {kind}")
    hosts = Counter(node["NodeManagerHostname"] for node in able)
    describe = ray.remote(max_retries=1, num_cpus=0, num_gpus=int(on_gpu))(_describe)
    asked = {}
    for node in able:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[describe.options(scheduling_strategy=strategy).remote(list(models))] = node
    answered, late = ray.wait(list(asked), num_returns=len(asked), timeout=DESCRIBE_S)
    machines = []
    for reference in answered:
        node = asked[reference]
        host = node["NodeManagerHostname"]
        name = host if hosts[host] == 1 else f"{host}-{node['NodeID'][:6]}"
        try:
            body = ray.get(reference)
        except RayError as problem:
            cause = problem.cause if isinstance(problem, RayTaskError) else problem
            if isinstance(cause, UsageError):
                raise cause from None
            warn(f"left out: {name}: {str(cause).partition(chr(10))[0]}")
            continue
        resources = node["Resources"]
        machines.append(
            Machine(
                node=node["NodeID"],
                name=name,
                cpus=int(resources.get("CPU", 1)),
                gpus=int(resources.get("GPU", 0)) if on_gpu else 0,
                environment=environment_from_json(body),
            )
        )
    for reference in late:
        ray.cancel(reference, force=True)
        warn(f"left out: {asked[reference]['NodeManagerHostname']}: no answer within {DESCRIBE_S:.0f} s")
    if not machines:
        raise WorkerError("no machine of this Ray cluster could describe itself; see the warnings above")
    return on_gpu, sorted(machines, key=lambda machine: machine.name)


def _sees(run: str) -> bool:
    return (Path(run) / "run.json").exists()


def _describe(models: Sequence[str]) -> dict[str, Any]:
    """Capture the environment of the machine that this runs on, with only one GPU: an agent sees no more."""
    environment = capture(models)
    if environment.software.get("cuda_devices"):
        hardware = {**environment.hardware, "gpus": environment.hardware["gpus"][:1]}
        environment = dataclasses.replace(environment, hardware=hardware)
    return environment_json(environment)
