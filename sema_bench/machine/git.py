"""Run git as a child process; errors say what to do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

from sema_bench.text.escape import printable

#: Variables of `git rev-parse --local-env-vars` that are not settings.
_REPOSITORY_VARIABLES = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES"),
    *("GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE", "GIT_GRAFT_FILE", "GIT_SHALLOW_FILE", "GIT_IMPLICIT_WORK_TREE"),
}
#: Message of git → what to do; the first match counts.
_MENDS = (
    (r"dubious ownership in repository at '(?P<at>.*)'", "run git config --global --add safe.directory {at}"),
    (
        r"not a git repository: (?P<at>.*)",
        "its .git names a folder that is not here; mount or clone the whole repository",
    ),
    (r"not a git repository", "run it inside a checkout"),
    (r"must be run in a work tree|cannot use bare repository", "it has no working tree; run it in a clone of it"),
    (r"\.lock': File exists", "wait for the other git process, or remove that file if there is none"),
    (r"locked work", "run git worktree unlock of that folder, and git worktree prune"),
    (r"promisor remote|missing blob|missing tree|bad object", "run git fetch --refetch, which brings what is missing"),
    (r"No space left", "free some disk space"),
    (r"Permission denied|Read-only file system", "make .git and the folder for temporary files writable"),
    (r"unknown revision|single revision", "there is no commit yet; make one"),
)


class GitError(Exception):
    """Git failed with ``status``; None if it could not start or did not end.

    ``reason`` is one line, in git's words if it printed any; ``mend`` says what to do, "" if that is unknown.
    """

    def __init__(self, reason: str, *, mend: str = "", status: int | None = None) -> None:
        super().__init__(f"{reason}; {mend}" if mend else reason)
        self.reason, self.mend, self.status = reason, mend, status


def ask_git(folder: Path, *arguments: str, timeout_s: float) -> str:
    """Run git in ``folder`` and return its output; raise GitError if it failed, is missing or did not end in time.

    Messages are in English. A hook's variables are removed: with them git would work on the commit in progress.
    """
    environment = {key: value for key, value in os.environ.items() if key not in _REPOSITORY_VARIABLES}
    environment |= {"LC_ALL": "C", "LANGUAGE": "C"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "-c", f"core.hooksPath={os.devnull}", *arguments],
            capture_output=True, text=True, timeout=timeout_s, errors="replace", check=False, env=environment,
        )  # fmt: skip
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} did not end within {timeout_s:.0f} s") from None
    except OSError as problem:
        raise GitError(f"git cannot be run: {problem.strerror}") from None
    if done.returncode:
        lines = [printable(" ".join(line.split())) for line in done.stderr.splitlines() if line.strip()]
        # the first fatal line, else the first error, else the first
        first = min(lines, key=lambda line: (not line.startswith("fatal:"), not line.startswith("error:")), default="")
        reason = f"git {arguments[0]}: {first or f'code {done.returncode}'}"
        raise GitError(reason, mend=_mend_of(reason), status=done.returncode)
    return done.stdout.strip()


def _mend_of(reason: str) -> str:
    for pattern, mend in _MENDS:
        if match := re.search(pattern, reason):
            return mend.format(**{name: shlex.quote(value) for name, value in match.groupdict().items()})
    return ""
