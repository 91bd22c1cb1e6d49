"""Runs or resumes a small plan with fake workers: what the kill tests kill. Arguments: results root, run name."""

from __future__ import annotations

import sys
from pathlib import Path

from run_support import ENVIRONMENT, fake_executor, make_plan, quiet_progress

from sema_bench.runner import run_plan
from sema_bench.store import RunFolder


def main(root: Path, name: str) -> None:
    if (root / name).is_dir():
        run, plan = RunFolder(root / name), make_plan()
    else:
        plan = make_plan()
        run = RunFolder.create(root, "fake", name, metadata={"suite": plan.suite})
    with run.lock():
        run.quarantine()
        executor = fake_executor(plan)
        run_plan(plan, run, executor, environment=ENVIRONMENT, progress=quiet_progress())
        executor.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
