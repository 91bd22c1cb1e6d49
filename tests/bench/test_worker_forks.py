"""Test a model that forks its worker: the cell is an error, and the child never answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import parse_source
from sema_bench.worker.protocol import FindOrigin, Inspect, Prepare, WorkloadSpec

LIMIT_S = 60.0
MODEL = """
import os
from pathlib import Path

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 10)
        if child := os.fork():
            Path(__file__).with_name("child").write_text(str(child))
        {then}

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def build():
    return Net()
"""


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    process = WorkerProcess(allocator="default", threads=1)
    try:
        process.wait_until_ready()
        yield process
    finally:
        process.kill()


def workload(folder: Path, then: str = "pass") -> WorkloadSpec:
    path = folder / "m.py"
    path.write_text(MODEL.format(then=then), encoding="utf-8")
    return WorkloadSpec(Cell(model=parse_source(f"{path}:build").name, height=16, width=16), seed=0)


def test_a_cell_whose_model_forks_is_an_error_and_says_so(tmp_path: Path, worker: WorkerProcess) -> None:
    with pytest.raises(CellFailure, match=r"the model forked the worker; .* take os\.fork out of it") as caught:
        worker.ask(Prepare(workload(tmp_path), time_limit_s=10.0, warmup_limit_s=0.0), timeout_s=LIMIT_S)
    assert caught.value.status == "error"
    assert worker.ask(FindOrigin(), timeout_s=LIMIT_S).sema, "the worker lives on"


@pytest.mark.parametrize("then", ["pass", "if not child: raise ValueError"])
def test_the_child_of_a_fork_ends_without_an_answer(tmp_path: Path, worker: WorkerProcess, then: str) -> None:
    """Two processes that answer on one pipe would mix up the answers of every later request."""
    request = Inspect(workload(tmp_path, then), ("params",))
    first = worker.ask(request, timeout_s=LIMIT_S)
    _wait_for_end(int((tmp_path / "child").read_text()))
    assert worker.ask(FindOrigin(), timeout_s=LIMIT_S).sema
    assert worker.ask(request, timeout_s=LIMIT_S) == first


def _wait_for_end(pid: int) -> None:
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.05)
    pytest.fail(f"the child {pid} still runs")
