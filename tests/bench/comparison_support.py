"""Build records, runs and comparisons for tests that compare runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sema_bench.analysis.comparison import compare
from sema_bench.spec.cell import Cell
from sema_bench.spec.model_source import YARDSTICK
from sema_bench.spec.plan import Plan
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.sampling import Sampling
from sema_bench.store.run_folder import RunFolder
from sema_bench.store.stored_run import StoredRun

#: The yardstick, timed beside every cell.
BESIDE = Cell(model=YARDSTICK, height=224, width=224)
MACHINE = {"hardware": {"cpu": "x", "cpus": 2}, "software": {"torch": "2.13.0"}}


def record(model: str, side: int, latency: float, *, yardstick: float | None = None, **changes: object) -> Record:
    cell = Cell(model=model, height=side, width=side, **changes)
    spread = {"ci_low": latency * 0.98, "ci_high": latency * 1.02}
    measurements = [
        Measurement(metric="latency_s", value=latency, **spread),
        Measurement(
            metric="throughput_images_per_s",
            value=cell.batch / latency,
            ci_low=cell.batch / spread["ci_high"],
            ci_high=cell.batch / spread["ci_low"],
        ),
        Measurement(metric="macs", value=1e9),
    ]
    if yardstick:
        relative = {key: value / yardstick for key, value in spread.items()}
        measurements.append(Measurement(metric="relative_latency", value=latency / yardstick, **relative))
        measurements.append(Measurement(metric="yardstick_s", value=yardstick))
    return Record(cell=cell, status="ok", measurements={m.metric: m for m in measurements})


def failed(model: str, side: int) -> Record:
    return Record(cell=Cell(model=model, height=side, width=side), status="crashed", reason="it [bold]died[/]")


def loaded(
    name: str, records: Sequence[Record], *, plan: dict[str, object] | None = None, **machine: object
) -> StoredRun:
    plan = plan or Plan("s", ((records[0].cell,),), ("params",), Sampling(), BESIDE).to_json()
    body = {**MACHINE, **machine}
    return StoredRun(name, tuple(records), body["hardware"], body["software"], {"plan": plan})


def speed(base: Sequence[Record], other: Sequence[Record], **options: object):
    return compare(loaded("a", base), loaded("b", other), metric="throughput_images_per_s", **options)


def write_run(root: Path, name: str, records: Sequence[Record], **machine: object) -> None:
    plan = Plan("s", ((records[0].cell,),), ("params",), Sampling(), BESIDE) if records else None
    metadata = {"environment": {**MACHINE, **machine}, "plan": plan.to_json() if plan else {}}
    run = RunFolder.create(root, "s", name, metadata=metadata)
    with run.lock():
        for each in records:
            run.append(each)
