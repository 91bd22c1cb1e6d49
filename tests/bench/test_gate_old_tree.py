"""Test a gate on the ``sema`` of an old commit: it must have all that today's harness imports."""

from __future__ import annotations

import random
import subprocess
import tarfile
from pathlib import Path

import pytest

import sema
from sema_bench.gate.arms import Arm
from sema_bench.gate.batch import Batch
from sema_bench.gate.inspection import inspect_arms
from sema_bench.gate.sampling import take_batch
from sema_bench.spec.cell import Cell
from sema_bench.spec.sampling import Sampling

ROOT = Path(sema.__file__).parents[1]
#: The last commit before ``sema_bench`` was split into folders, and a commit of the release before that.
COMMITS = ("19eaf7c", "e0a5392")
SAMPLING = Sampling(time_limit_s=1.0)


@pytest.fixture(params=COMMITS)
def old_tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    archive = tmp_path / "old.tar"
    command = ["git", "-C", str(ROOT), "archive", "-o", str(archive), request.param, "sema"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"needs a git checkout with the commit {request.param}")
    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


@pytest.mark.slow
def test_the_harness_of_today_counts_and_times_the_models_of_an_old_commit(old_tree: Path) -> None:
    arms = [Arm("base", "an old commit", folder=old_tree), Arm("head", "this tree", folder=ROOT)]
    cells = [Cell(model=name, height=64, width=64) for name in ("sema_micro", "vminet_ti")]
    assert Path(arms[0].check(cells[0]).sema or "").is_relative_to(old_tree)
    for inspection in inspect_arms(arms, cells, sampling=SAMPLING).values():
        assert not inspection.failures
        assert [count.metric for count in inspection.counts] == ["params", "macs", "peak_memory_bytes"]
        assert all(count.base == count.head for count in inspection.counts if count.metric != "peak_memory_bytes")
    for _, batch in take_batch(arms, cells, sampling=SAMPLING, chance=random.Random(0)):
        assert isinstance(batch, Batch), batch
