"""A fixed piece of work that is timed in every group, so that a machine that changes speed does not bend a curve.

The models of one resolution are sampled in turns, and drift hits them alike. Different resolutions are measured
minutes apart: on a shared machine the same code was found up to 1.6 times slower from one to the next, which an
exponent takes for growth. So a fixed network, the yardstick, takes part in the rounds of every group, in a process of
its own; a latency in units of the yardstick of the same rounds is free of what slowed both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import median_interval

#: A visit takes about this long; it costs each round a few per cent.
VISIT_S = 0.1


class Yardstick:
    """Times one small cell beside whatever else is sampled. One that fails is given up, and nothing is divided by it.

    Args:
        cell: what to time; small, and the same throughout a run.
        sampling: seed and time limits.
        worker_command: how to start a worker; tests pass one of their own.
    """

    def __init__(self, cell: Cell, sampling: Sampling, *, worker_command: Sequence[str] = ()) -> None:
        self.cell = cell
        self._sampling = sampling
        self._count = 1
        self._samples: list[float] = []
        self._prepared = False
        self._worker: WorkerProcess | None = WorkerProcess(
            allocator=cell.allocator, threads=cell.threads, command=worker_command
        )

    def prepare(self) -> None:
        """Build and warm up, once."""
        if self._worker is None or self._prepared:
            return
        limit = self._sampling.time_limit_s
        request = {"cell": dataclasses.asdict(self.cell), "seed": self._sampling.seed}
        try:
            self._worker.wait_until_ready()
            answer = self._worker.ask(
                "prepare",
                timeout_s=self._sampling.wall_limit_s(self.cell.mode),
                time_limit_s=limit,
                warmup_limit_s=limit,
                **request,
            )
        except CellFailure:
            self.close()
            return
        latency = (answer["warmup_s"] or [answer["first_forward_s"]])[-1]
        self._count = max(1, round(VISIT_S / latency)) if latency > 0 else 1
        self._prepared = True

    def visit(self) -> None:
        """Take a few samples."""
        if self._worker is None:
            return
        limit = self._sampling.wall_limit_s(self.cell.mode)
        try:
            answer = self._worker.ask("sample", timeout_s=limit, count=self._count, settle=1)
        except CellFailure:
            self.close()
        else:
            self._samples += answer["wall_s"]

    def latency(self) -> Measurement | None:
        """Return the median of the samples since ``reset``, with its interval; None without any."""
        if not self._samples:
            return None
        value, low, high = median_interval(self._samples, seed=self._sampling.seed)
        return Measurement(metric="yardstick_s", value=value, ci_low=low, ci_high=high)

    def reset(self) -> None:
        """Forget the samples, before the next group."""
        self._samples.clear()

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None
        self._samples.clear()
