"""Runs or resumes a small plan with fake workers: what the kill tests kill. Arguments: results root, run name."""

from __future__ import annotations

import sys
from pathlib import Path

from run_support import ENVIRONMENT, fake_executor, make_plan, quiet_progress

from sema_bench.plan import Plan
from sema_bench.runner import run_plan
from sema_bench.store import RunFolder


def main(root: Path, name: str) -> None:
    if (root / name).is_dir():
        run = RunFolder(root / name)
        plan = Plan.from_json(run.metadata()["plan"]) if (run.path / "run.json").exists() else make_plan()
    else:
        run, plan = RunFolder.create(root, "fake", name), make_plan()
    with run.lock():
        run.write_metadata({"plan": plan.to_json()})
        run.quarantine()
        executor = fake_executor(plan)
        run_plan(plan, run, executor, environment=ENVIRONMENT, progress=quiet_progress())
        executor.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
