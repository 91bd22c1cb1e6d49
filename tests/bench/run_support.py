"""Plans, executors and progress for tests of the runner without torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from sema_bench.cluster.agent import AgentSetup
from sema_bench.cluster.agent_process import AgentProcess
from sema_bench.driver.local import LocalExecutor
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling

ENVIRONMENT = "0123456789ab"
FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def make_plan(
    models: Sequence[str] = ("good", "good2"),
    sides: Sequence[int] = (224, 512, 1024),
    *,
    time_limit_s: float = 2.0,
    probes: Sequence[str] = ("params", "throughput"),
) -> Plan:
    groups = tuple(tuple(Cell(model=model, height=side, width=side) for model in models) for side in sides)
    return Plan(suite="fake", groups=groups, probes=tuple(probes), sampling=Sampling(time_limit_s=time_limit_s))


def fake_executor(plan: Plan) -> LocalExecutor:
    return LocalExecutor(plan, worker_command=FAKE_WORKER)


def fake_agents(plan: Plan, folder: Path, count: int) -> dict[str, AgentProcess]:
    """Return agents with fake workers, each agent in its own process."""
    setup = AgentSetup(plan, str(folder), ENVIRONMENT, FAKE_WORKER)
    return {f"n{k}": AgentProcess(dataclasses.replace(setup, node=f"n{k}"), {}) for k in range(count)}


class quiet_progress:  # noqa: N801 - used like a function
    """Collect the records and show nothing."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.total = self.missing = 0

    def start(self, *, total: int, missing: Sequence[Sequence[Cell]]) -> None:
        self.total, self.missing = total, sum(map(len, missing))

    def finished(self, record: Record) -> None:
        self.records.append(record)


def ok_record(model: str = "good", side: int = 224, latency_s: float = 0.1) -> Record:
    latency = Measurement(
        metric="latency_s", value=latency_s, ci_low=latency_s, ci_high=latency_s, samples=(latency_s,)
    )
    return Record(cell=Cell(model=model, height=side, width=side), status="ok", measurements={"latency_s": latency})
