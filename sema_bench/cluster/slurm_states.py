"""Read the states of jobs from Slurm, all of them at once.

submitit asks ``sacct``, which needs an accounting database that small clusters lack. ``squeue`` knows a job for some
minutes after its end; a job that it no longer knows has ended.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: States of a job that has not ended.
_ALIVE = (
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_HOLD",
    "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
#: Reasons of a job that waits forever: it requests something that the cluster does not have.
_NEVER = (
    "AccountNotAllowed", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionConfig", "PartitionNodeLimit",
    "PartitionTimeLimit", "QOSNotAllowed",
)  # fmt: skip
#: File of the jobs that a run has queued, in its folder ``slurm``.
JOBS = "jobs.json"
#: A scheduler that does not answer within this time is asked again later.
_ANSWER_S = 30.0


def ended(jobs: Sequence[Any]) -> dict[str, str]:
    """Map the ended ones of submitit's ``jobs`` to their states; ``UNKNOWN`` if Slurm has forgotten them."""
    local = {str(job.job_id): str(job.state).upper() for job in jobs if _is_local(job) and job.done()}
    ids = [str(job.job_id) for job in jobs if not _is_local(job)]
    states: dict[str, str] = {}
    for name in sorted({name.partition("_")[0] for name in ids}):  # squeue refuses a list with an unknown job
        queue = _queue(name)
        if queue is None:  # no answer: nothing is known
            return local
        states |= {job: state for job, (state, _) in queue.items()}
    now = {name: states.get(name, "UNKNOWN") for name in ids}
    return local | {name: state for name, state in now.items() if state not in _ALIVE}


def living_jobs(folder: Path) -> list[str]:
    """List the jobs in ``folder`` that have not ended, as far as Slurm answers."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        names = [str(body["job"]) for body in json.loads((folder / JOBS).read_text(encoding="utf-8")) if body["job"]]
        queues = [_queue(name) or {} for name in sorted({name.partition("_")[0] for name in names})]
        return [name for queue in queues for name, (state, _) in queue.items() if name in names and state in _ALIVE]
    return []


def why_waiting(job: Any) -> tuple[str, bool]:
    """Return Slurm's reason why a job waits, "" if it does not or is unknown, and whether the wait can end."""
    queue = {} if _is_local(job) else _queue(str(job.job_id)) or {}
    state, reason = queue.get(str(job.job_id), ("", ""))
    return (reason, reason not in _NEVER) if state == "PENDING" and reason != "None" else ("", True)


def _queue(name: str) -> dict[str, tuple[str, str]] | None:
    """Map a job, or the tasks of an array, to state and reason; None if the scheduler does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T %r", f"--jobs={name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    parts = (line.split(maxsplit=2) for line in done.stdout.splitlines() if line.strip())
    return {name: (state, "".join(reason)) for name, state, *reason in parts}


def _is_local(job: Any) -> bool:
    return type(job).__name__ == "LocalJob"
