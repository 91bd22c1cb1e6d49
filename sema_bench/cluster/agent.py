"""What measures groups away from the driver: a LocalExecutor with all that it needs to know of the run.

An agent lives in an actor of Ray, in a job of Slurm, or in a process of its own that is pinned to one GPU
(``python -m sema_bench.cluster.agent``, JSON lines in and out). It stamps its records with the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sema_bench.cluster.device_lock import device_lock
from sema_bench.driver.executor import Listener
from sema_bench.driver.local import LocalExecutor
from sema_bench.driver.peak_cache import PeakCache
from sema_bench.driver.peaks import measure_in_worker
from sema_bench.driver.worker_process import CellFailure
from sema_bench.errors import UsageError
from sema_bench.machine.environment import code_hash
from sema_bench.machine.processes import die_with_parent, let_libraries_warn
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import EvaluationSettings, Sampling
from sema_bench.spec.weights_source import trained_seed, weights_path, why_it_failed


@dataclass(frozen=True)
class Assignment:
    """What an agent has to know of a run; goes to JSON and back.

    Attributes:
        probes, sampling, evaluation, yardstick: see ``Plan``.
        run: folder of the run; needed on the agent's machine where cells have weights.
        environment: fingerprint of the machines that measure; code: digest of the code.
        worker_command: how to start a worker; tests pass one of their own.
    """

    probes: tuple[str, ...]
    sampling: Sampling
    evaluation: EvaluationSettings
    yardstick: Cell | None
    run: str
    environment: str
    code: str
    worker_command: tuple[str, ...] = ()

    @classmethod
    def of(cls, plan: Plan, run: Path, environment: str, worker_command: Sequence[str] = ()) -> Assignment:
        return cls(
            probes=plan.probes,
            sampling=plan.sampling,
            evaluation=plan.evaluation,
            yardstick=plan.yardstick,
            run=str(run.absolute()),
            environment=environment,
            code=code_hash(),
            worker_command=tuple(worker_command),
        )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Assignment:
        body = json.loads(text)
        return cls(
            **body
            | {
                "probes": tuple(body["probes"]),
                "sampling": Sampling(**body["sampling"]),
                "evaluation": EvaluationSettings(**body["evaluation"]),
                "yardstick": Cell(**body["yardstick"]) if body["yardstick"] else None,
                "worker_command": tuple(body["worker_command"]),
            }
        )

    def executor(self, listener: Listener) -> LocalExecutor:
        """Return what measures cells on this machine."""
        run = Path(self.run)
        return LocalExecutor(
            probes=self.probes,
            sampling=self.sampling,
            yardstick=self.yardstick,
            evaluation=self.evaluation,
            bookmarks=run / "unfinished",
            weights_of=functools.partial(_weights_of, run),
            peaks=PeakCache(self.environment, measure_in_worker(self.worker_command)),
            listener=listener,
            worker_command=self.worker_command,
        )


class Agent:
    """Measures the groups that it is given, one after the other.

    Args:
        assignment: JSON of an ``Assignment``.
        node: what to call this machine in records.
        share: (k, n): take the k-th of n equal parts of the CPUs, so that agents of one machine keep apart.
    """

    def __init__(self, assignment: str, node: str, share: tuple[int, int] = (0, 1)) -> None:
        _keep_to(*share)
        self._assignment = Assignment.from_json(assignment)
        self._node = node
        self._executor: LocalExecutor | None = None

    def ready(self) -> bool:
        """Answer, so that whoever asks knows that it runs."""
        return True

    def measure(self, group: Sequence[Mapping[str, Any]], skipped: Mapping[str, str]) -> Iterator[str]:
        """Yield the JSON of each cell's record; ``skipped`` is cell id → reason."""
        cells = [Cell(**cell) for cell in group]
        with device_lock(cells[0].device):
            executor = self._executor = self._executor or self._assignment.executor(lambda cell, phase: None)
            executor.submit(cells, {cell: skipped[cell.id] for cell in cells if cell.id in skipped})
            for record in executor.records():
                yield self._stamped(record).to_json()

    def stop(self) -> None:
        """End all workers by force."""
        if self._executor is not None:
            self._executor.cancel()

    def _stamped(self, record: Record) -> Record:
        return dataclasses.replace(
            record, environment=self._assignment.environment, details={**record.details, "node": self._node}
        )


def _keep_to(part: int, parts: int) -> None:
    """Let this process and its workers run on one of ``parts`` equal parts of the CPUs; too few are shared by all."""
    cpus = sorted(os.sched_getaffinity(0))
    size = len(cpus) // parts
    if parts > 1 and size:
        os.sched_setaffinity(0, cpus[part * size : (part + 1) * size])


def group_to_json(group: Sequence[Cell], skipped: Mapping[Cell, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what ``Agent.measure`` takes."""
    return [dataclasses.asdict(cell) for cell in group], {cell.id: reason for cell, reason in skipped.items()}


def _weights_of(run: Path, cell: Cell) -> Path | None:
    """Return the file with the weights of ``cell``.

    Raises:
        CellFailure: there is none.
    """
    try:
        path = weights_path(run, cell)
    except UsageError as problem:
        raise CellFailure("error", str(problem), worker_lost=False) from None
    if path is not None and trained_seed(cell.weights) is not None and not path.exists():
        raise CellFailure("error", f"its training failed: {why_it_failed(path.parent)}", worker_lost=False)
    return path


def main(parent: int) -> None:
    """Serve a driver: the first line is {"assignment", "node"}, each further one a group; one answer per record."""
    die_with_parent(parent)
    let_libraries_warn()
    agent: Agent | None = None
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a library prints must not be taken for an answer
        for line in sys.stdin:
            body = json.loads(line)
            if agent is None:
                agent = Agent(json.dumps(body["assignment"]), body["node"], tuple(body["share"]))
                continue
            for record in agent.measure(body["group"], body["skipped"]):
                print(record, file=answers, flush=True)
            print("", file=answers, flush=True)
        if agent is not None:
            agent.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(int(sys.argv[1]))
