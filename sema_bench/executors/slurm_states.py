"""What became of jobs, asked of the scheduler for all of them at once.

Not by submitit, which asks ``sacct``: that needs a database of accounts, and small clusters have none. ``squeue`` knows
jobs for some minutes after their end; one that it no longer knows has ended.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

#: States of a job that has not ended.
_ALIVE = (
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_HOLD",
    "REQUEUE_FED", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
#: A scheduler that does not answer within this time is asked again later.
_ANSWER_S = 30.0


def ended(jobs: Sequence[Any]) -> dict[str, str]:
    """Return job id → state of those of submitit's ``jobs`` that have ended; ``UNKNOWN`` where nobody can tell how."""
    found = {str(job.job_id): str(job.state).upper() for job in jobs if _is_local(job) and job.done()}
    return found | _ended_in_slurm([str(job.job_id) for job in jobs if not _is_local(job)])


def _ended_in_slurm(ids: Sequence[str]) -> dict[str, str]:
    if not ids:
        return {}
    whole = sorted({name.partition("_")[0] for name in ids})
    states: dict[str, str] = {}
    for name in whole:  # one that is unknown makes squeue refuse the list
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"--jobs={name}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return {}
        if done.returncode and "Invalid job id" not in done.stderr:
            return {}  # it does not answer: nothing is known
        states |= dict(_pairs(done.stdout.splitlines()))
    now = {name: states.get(name, "UNKNOWN") for name in ids}
    return {name: state for name, state in now.items() if state not in _ALIVE}


def _pairs(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    for line in lines:
        name, _, state = line.strip().partition(" ")
        yield name, state


def _is_local(job: Any) -> bool:
    return type(job).__name__ == "LocalJob"
