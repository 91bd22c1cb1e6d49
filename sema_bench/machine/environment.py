"""Capture the environment of a run: machine, driver, torch, threads, clocks and commit.

A short-lived process describes it: the driver never imports torch, whose threads would disturb the workers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sema_bench.errors import UsageError, WorkerError
from sema_bench.machine.git import GitError, ask_git
from sema_bench.machine.processes import child_environment
from sema_bench.spec.record import Environment

_GIT_LIMIT_S = 10.0
_SURVEY_LIMIT_S = 120.0


def capture(models: Sequence[str] = ()) -> Environment:
    """Describe the environment of a worker from a fresh process, which also builds ``models`` without memory.

    Raises:
        UsageError: one of the models cannot be built.
        WorkerError: torch cannot be imported; the message has the last line of output.
    """
    return Environment(**_survey(models))


def _survey(models: Sequence[str]) -> dict[str, Any]:
    python = sys.executable
    command = [python, "-m", "sema_bench.worker.survey", str(os.getpid()), *models]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SURVEY_LIMIT_S, check=False, env=child_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise WorkerError(f"cannot run {python}: {failure}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkerError(f"{python} cannot describe its environment: {last}")
    body: dict[str, Any] = json.loads(done.stdout)
    for name, problem in body.pop("refused").items():
        raise UsageError(f"model {name!r} cannot be built: {problem}")
    return body


def environment_json(environment: Environment) -> dict[str, Any]:
    """Write ``environment`` as run.json holds it."""
    return {"fingerprint": environment.fingerprint, **dataclasses.asdict(environment)}


def environment_from_json(body: Mapping[str, Any]) -> Environment:
    """Read the environment from run.json."""
    hardware, software, context = body["hardware"], body["software"], body.get("context", {})
    return Environment(hardware=dict(hardware), software=dict(software), context=dict(context))


def code_hash() -> str:
    """Hash the source of ``sema`` and ``sema_bench``, from a checkout or installed, to 12 hex digits."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for folder in (package.parent / "sema", package):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(package.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def commit_facts() -> dict[str, str | None]:
    """Name the commit of this code, or say why it is unknown."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        why = (
            "sema-bench is an installed copy; `code` identifies it, and pip install -e . from a checkout gives commits"
        )
        return {"commit": None, "commit_unknown": why}
    try:
        commit = ask_git(folder, "rev-parse", "HEAD", timeout_s=_GIT_LIMIT_S)
        dirty = ask_git(folder, "status", "--porcelain", "-uno", timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        return {"commit": None, "commit_unknown": str(problem)}
    return {"commit": commit + ("+dirty" if dirty else "")}


def check_same(run: str, before: Environment, now: Environment) -> None:
    """Raise UsageError if hardware, software or code have changed since ``before``, when ``run`` started."""
    if now.fingerprint != before.fingerprint:
        raise UsageError(
            f"run {run} was measured in another environment ({_difference(before, now)}); "
            "start a new run, and compare the two"
        )
    if now.context.get("code") != before.context.get("code"):
        raise UsageError(
            f"run {run} was measured with other code of sema-bench ({_commits(before, now)}); "
            "check that code out, or start a new run and compare the two"
        )


def _commits(before: Environment, now: Environment) -> str:
    then, here = (str(environment.context.get("commit") or "unknown") for environment in (before, now))
    return f"commit {then} then, {here} now" if then != here else f"commit {here}, with other changes on top of it"


def _difference(before: Environment, now: Environment) -> str:
    """Name the first few facts in which two environments differ."""
    old, new = ({**environment.hardware, **environment.software} for environment in (before, now))
    changed = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return "; ".join(f"{key}: {old.get(key)} then, {new.get(key)} now" for key in changed[:3])
