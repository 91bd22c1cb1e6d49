"""Run or resume a small plan with fake workers; the fault tests kill it. Arguments: results root, run name.

Environment: ``FAKE_MODELS`` lists the models, ``FAKE_SIDES`` is the number of sizes of each, and ``FAKE_LANES`` the
number of agents that measure at once (0: no agents, the driver has its own workers).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from run_support import ENVIRONMENT, fake_agents, fake_executor, make_plan, quiet_progress

from sema_bench.cluster.lanes import Lanes
from sema_bench.driver.schedule import Schedule
from sema_bench.machine.interrupts import Interrupted, stop_on_signals
from sema_bench.store.run_folder import RunFolder


def main(root: Path, name: str) -> None:
    models = os.environ.get("FAKE_MODELS", "good,good2").split(",")
    sides = [224, 512, 1024]
    if "FAKE_SIDES" in os.environ:
        sides = [32 * (1 + k) for k in range(int(os.environ["FAKE_SIDES"]))]
    plan, lanes = make_plan(models, sides), int(os.environ.get("FAKE_LANES", "0"))
    run = RunFolder(root / name)
    if not (root / name / "run.json").exists():
        run = RunFolder.create(root, "fake", name, metadata={"suite": plan.suite})
    with run.lock():
        run.quarantine()
        executor = Lanes(fake_agents(plan, run.path, lanes)) if lanes else fake_executor(plan)
        try:
            Schedule(plan, run, environment=ENVIRONMENT).run(executor, quiet_progress())
        except Interrupted:
            executor.cancel()
            raise
        executor.close()


if __name__ == "__main__":
    try:
        with stop_on_signals():
            main(Path(sys.argv[1]), sys.argv[2])
    except Interrupted as stop:
        sys.exit(stop.exit_code)
