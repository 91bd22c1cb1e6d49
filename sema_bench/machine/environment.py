"""What machine, driver, torch, threads, clocks and commit a run was measured with.

``capture`` asks a short-lived process, because the driver of a run never imports torch: its threads
would disturb what the workers time.
"""

from __future__ import annotations

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


def capture(models: Sequence[str] = (), *, python: str = sys.executable, timeout_s: float = 120.0) -> Environment:
    """Return the environment that a worker started with ``python`` would measure in.

    Args:
        models: names of models that are to be measured; each is built once, without memory.
        python: interpreter of the workers.
        timeout_s: how long to wait for it.

    Raises:
        UsageError: one of the models cannot be built as named.
        WorkerError: the interpreter cannot import torch; the message gives its last line.
    """
    body = json.loads(_ask(python, models, timeout_s))
    _raise_refused(body.pop("refused"))
    return Environment(**body)


def check_models(models: Sequence[str]) -> None:
    """Build models without memory, in a process of its own; nothing happens without any.

    Raises:
        UsageError: one of them cannot be built as named.
    """
    if models:
        _raise_refused(json.loads(_ask(sys.executable, models, 120.0))["refused"])


def _raise_refused(refused: Mapping[str, str]) -> None:
    for name, problem in refused.items():
        raise UsageError(f"model {name!r} cannot be built: {problem}")


def _ask(python: str, models: Sequence[str], timeout_s: float) -> str:
    """Let a fresh process describe itself as JSON: what this one has loaded and set does not count."""
    command = [python, "-m", "sema_bench.worker.survey", str(os.getpid()), *models]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=child_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        raise WorkerError(f"cannot run {python}: {failure}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise WorkerError(f"{python} cannot describe its environment: {last}")
    return done.stdout


def environment_from_json(body: Mapping[str, Any]) -> Environment:
    """Return the Environment that run.json holds."""
    return Environment(hardware=body["hardware"], software=body["software"], context=body.get("context", {}))


def code_hash() -> str:
    """Return 12 hex digits over the source of ``sema`` and ``sema_bench``, whether from a checkout or installed."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for folder in (package.parent / "sema", package):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(package.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def commit_facts() -> dict[str, str | None]:
    """Return the commit of this code; where git cannot tell, why."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder.parent / ".git").exists():
        return {"commit": None, "commit_unknown": "the package does not lie in a git checkout"}
    try:
        commit = ask_git(folder, "rev-parse", "HEAD", timeout_s=_GIT_LIMIT_S)
        dirty = ask_git(folder, "status", "--porcelain", "-uno", timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        return {"commit": None, "commit_unknown": str(problem)}
    return {"commit": commit + ("+dirty" if dirty else "")}


def environment_json(environment: Environment) -> dict[str, Any]:
    """Return what run.json holds of ``environment``."""
    return {
        "fingerprint": environment.fingerprint,
        "hardware": dict(environment.hardware),
        "software": dict(environment.software),
        "context": dict(environment.context),
    }
