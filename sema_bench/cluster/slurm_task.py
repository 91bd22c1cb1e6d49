"""Measure groups in a Slurm task, on its machine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.cluster.agent import Agent
from sema_bench.errors import UsageError
from sema_bench.machine.environment import capture, environment_json
from sema_bench.machine.interrupts import Interrupted, stop_on_signals
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.store.files import append_line, atomic_write, utc_now
from sema_bench.store.run_folder import records_in


def measure_here(
    setup: str, code: str, group: Sequence[Mapping[str, Any]], skipped: Mapping[str, str], shard: str
) -> None:
    """Measure the cells of a group that have no record in the file ``shard``; append each record at once.

    SIGTERM, which schedulers send before the end, stops the workers; finished records stay. ``code`` is the digest of
    the code that queued the task; for the other arguments see ``Agent``.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # submitit's way to end a task early; Slurm's own limit is enough
    here = capture()
    path = Path(shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    done = {record.cell.id for record in records_in(path)}
    group = [cell for cell in group if Cell(**cell).id not in done]
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        append_line(path, "", sync=True)  # ends a torn line
    if not group:
        return
    why = ""
    if here.fingerprint != json.loads(setup)["environment"]:
        why = (
            f"job ran on {os.uname().nodename}, whose hardware or software differs from the run's; "
            "constrain the jobs (--slurm constraint=…), then --resume with --retry-failed"
        )
    elif here.context.get("code") != code:
        why = "the code changed while the job waited; start a new run, or restore it and --resume with --retry-failed"
    if why:
        for cell in group:
            record = Record(cell=Cell(**cell), status="error", reason=why, started_at=utc_now())
            append_line(path, record.to_json(), sync=True)
        return
    agent = Agent(setup)
    try:
        with stop_on_signals():
            for line in agent.measure(group, skipped):
                append_line(path, line, sync=True)
    except Interrupted as stop:
        raise SystemExit(stop.exit_code) from None
    finally:
        agent.stop()


def describe_here(models: Sequence[str], path: str) -> None:
    """Capture the environment and write it to ``path``."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        body: dict[str, Any] = environment_json(capture(models))
        granted = os.environ.get("SLURM_CPUS_ON_NODE", "")
        body["granted_cpus"] = int(granted) if granted.isdecimal() else None
    except UsageError as problem:
        body = {"refused": str(problem)}
    atomic_write(Path(path), json.dumps(body))
