"""How much of 64 machines does the driver use? A simulation: cells that only take their time, on as many lanes.

``python benchmarks/simulate_lanes.py``. Runner, lanes and store are the real ones: every record is written and synced.
What is simulated is the measuring: a cell sleeps for as long as it says, some take five times as long, some fail, and
one machine is lost on the way. The ideal is the least time that any order could take: the work divided by the lanes,
or the longest group.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "bench"))

from fake_lane import FakeLane
from run_support import quiet_progress

from sema_bench.cluster.lanes import Lanes
from sema_bench.driver.schedule import run_plan
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import Plan
from sema_bench.spec.sampling import Sampling
from sema_bench.store.run_folder import RunFolder


def simulate(lanes: int, groups: int, seconds: float, *, seed: int = 0) -> None:
    """Run ``groups`` of four cells on ``lanes`` and print what it cost beside the cells' own time."""
    choose = random.Random(seed)

    def model() -> str:
        kind = "fail" if choose.random() < 0.02 else "s"
        slower = 5.0 if choose.random() < 0.05 else 1.0
        return f"{kind}{seconds * slower * choose.uniform(0.5, 1.5):.4f}"

    plan = Plan(
        suite="simulated",
        groups=tuple(
            tuple(Cell(model=f"{model()}-{k}", height=32 * (1 + g), width=32) for k in range(4)) for g in range(groups)
        ),
        probes=("params",),
        sampling=Sampling(),
    )
    machines = {f"n{k}": FakeLane(f"n{k}", lost_at=5 if k == 0 else None) for k in range(lanes)}
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder), "simulated", "run")
        executor = Lanes(machines)
        cpu, started = time.process_time(), time.monotonic()
        with run.lock():
            records = run_plan(plan, run, executor, environment="0" * 12, progress=quiet_progress())
        took, cpu = time.monotonic() - started, time.process_time() - cpu
        executor.close()
    assert len(records) == len(plan.cells)
    busy = sum(machine.busy_s for machine in machines.values())
    asked = [sum(float(cell.model.lstrip("sfail").partition("-")[0]) for cell in group) for group in plan.groups]
    ideal = max(sum(asked) / lanes, max(asked))
    failed = sum(record.status != "ok" for record in records)
    print(f"{len(records)} cells ({failed} failed) in {groups} groups on {lanes} lanes, one of them lost after 4 cells")
    print(
        f"took {took:.2f} s; ideal {ideal:.2f} s: efficiency {ideal / took:.1%}; lanes busy {busy / took / lanes:.1%}"
    )
    print(f"driver: {cpu / len(records) * 1e3:.2f} ms of CPU time a cell")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--groups", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=0.25, help="mean time of a cell")
    simulate(**vars(parser.parse_args()))
