"""The two arms of a gate: states of the code, and how to start a process that runs their models.

The harness that runs the gate measures both arms. An arm brings the package ``sema`` and the model files, from a git
ref that is checked out beside the repository, or from another Python environment.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.errors import UsageError, WorkerError
from sema_bench.machine.git import GitError, ask_git
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.text.escape import printable
from sema_bench.worker.protocol import FindOrigin, Origin

_WORKER = Path(__file__).with_name("arm_worker.py")
_GIT_LIMIT_S = 300.0
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Arm:
    """One side of the comparison.

    Attributes:
        name: ``base`` or ``head``.
        label: ref and commit, or environment, as tables show it.
        folder: root of its code; None if it is installed.
        within: working folder of its processes, relative to ``folder``.
        extra_work: slowdown of its forward pass in self-tests, as a share of its time.
        environment: additional variables of its processes.
        compiler_caches: parent of its compiler caches, one for each of its processes.
        command: command line of a worker.
    """

    name: str
    label: str
    folder: Path | None = None
    within: Path = Path()
    extra_work: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    compiler_caches: Path | None = None
    command: Sequence[str] = (sys.executable, str(_WORKER))

    def start(self, cell: Cell) -> WorkerProcess:
        """Start a worker for cells that share allocator and threads with ``cell``; it may not be ready yet."""
        variables = dict(self.environment)
        if self.compiler_caches is not None:
            variables[COMPILER_CACHE] = tempfile.mkdtemp(prefix=self.name, dir=self.compiler_caches)
        if self.folder is not None:
            paths = [str(path) for path in (self.folder, self.folder / "src") if path.is_dir()]
            variables["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        return WorkerProcess(
            allocator=cell.allocator,
            threads=cell.threads,
            command=self.command,
            environment=variables,
            folder=self.folder and self.folder / self.within,
        )

    def check(self, cell: Cell) -> Origin:
        """Check that its processes start, and import ``sema`` from its folder if that has one, or raise WorkerError."""
        try:
            with contextlib.closing(self.start(cell)) as worker:
                origin = worker.ask(FindOrigin(), timeout_s=_LIMIT_S)
        except CellFailure as failure:
            *_, why = (failure.reason, *failure.details.get("worker_output", "").strip().splitlines())
            raise WorkerError(f"{self.name} ({self.label}) cannot be imported: {printable(why)[:300]}") from None
        file = Path(origin.sema or ".")
        if (
            self.folder is not None
            and any((self.folder / parent / "sema" / "__init__.py").exists() for parent in (".", "src"))
            and self.folder.resolve() not in file.resolve().parents
        ):
            raise WorkerError(
                f"{self.name} ({self.label}) imports sema from {file.parent}, not from its own code; "
                f"run the gate with --{self.name}-python of an environment in which that is installed"
            )
        return origin


def check_arms(arms: Sequence[Arm], cell: Cell, log: Callable[[str], None]) -> None:
    """Check that both arms run, or raise WorkerError, and that they differ, or raise UsageError."""
    origins = []
    for arm in arms:
        log(f"{arm.name}: {arm.label}")
        origins.append(arm.check(cell))
        log(f"{arm.name}: sema from {origins[-1].sema}, torch {origins[-1].torch}")
    if arms[0].folder is None and origins[0] == origins[1]:
        raise UsageError(
            f"both environments have the same sema ({origins[0].sema}) and torch {origins[0].torch}: "
            "nothing can differ; install base and head in two environments"
        )


@contextlib.contextmanager
def arms_of_refs(repository: Path, base: str, head: str | None) -> Iterator[tuple[Arm, Arm]]:
    """Check out both refs into a temporary folder, and remove them at the end; a head of None is the working tree."""
    root = root_of(repository)
    within = repository.resolve().relative_to(root.resolve())
    with tempfile.TemporaryDirectory(prefix="sema-bench-gate-", ignore_cleanup_errors=True) as scratch:
        folders = {name: Path(scratch) / name for name in ("base", "head")}
        try:
            yield _checked_out(root, folders["base"], base, within), _checked_out(root, folders["head"], head, within)
        finally:
            for folder in folders.values():
                with contextlib.suppress(WorkerError, UsageError):
                    _git(root, "worktree", "remove", "--force", str(folder))


def root_of(folder: Path) -> Path:
    """Return the top folder of the repository that contains ``folder``, or raise UsageError."""
    return Path(_git(folder, "rev-parse", "--show-toplevel"))


def is_dirty(repository: Path) -> bool:
    """Check whether tracked files differ from the last commit."""
    return bool(_git(repository, "status", "--porcelain", "--untracked-files=no"))


def arm_of_python(name: str, python: str) -> Arm:
    """Make the arm of an installed environment; raise UsageError if ``python`` does not run."""
    try:
        answer = subprocess.run(
            [python, "-c", "import sys; print(sys.version.split()[0])"],
            capture_output=True, text=True, timeout=_LIMIT_S, errors="replace", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it does not answer"
        raise UsageError(f"--{name}-python: {python!r} does not run: {why}") from None
    if answer.returncode or not re.fullmatch(r"\d+\.\d+\.\S+\s*", answer.stdout):
        raise UsageError(f"--{name}-python: {python!r} is not a Python interpreter")
    return Arm(name, f"{python} ({answer.stdout.strip()})", command=(python, str(_WORKER)))


@contextlib.contextmanager
def with_compiler_caches(arms: Sequence[Arm]) -> Iterator[list[Arm]]:
    """Give each process of the arms its own compiler cache: a compiler's luck must vary between batches, too."""
    with tempfile.TemporaryDirectory(prefix="sema-bench-compiled-", ignore_cleanup_errors=True) as scratch:
        yield [replace(arm, compiler_caches=Path(scratch)) for arm in arms]


def _checked_out(root: Path, folder: Path, ref: str | None, within: Path) -> Arm:
    name = folder.name
    if ref is None:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return Arm(name, f"working tree on {commit}", root, within)
    if not re.fullmatch(r"[A-Za-z0-9._/@^~{}+-]{1,200}", ref) or ref.startswith("-"):
        raise UsageError(f"--{name}: {ref[:200]!r} is not a git ref")
    try:
        commit = ask_git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        if problem.status is None:
            raise WorkerError(str(problem)) from None
        fatal = re.search("(?:fatal|error): (.*)", problem.reason)
        why = fatal[1] if fatal else _how_to_get(root, ref)
        raise UsageError(f"--{name}: this repository has no commit {ref!r}; {why}") from None
    _git(root, "worktree", "add", "--detach", "--force", str(folder), commit)
    return Arm(name, f"{ref} ({commit[:9]})", folder, within if (folder / within).is_dir() else Path())


def _how_to_get(root: Path, ref: str) -> str:
    if _git(root, "rev-parse", "--is-shallow-repository") == "true":
        return "the clone is shallow: run git fetch --unshallow (in actions/checkout, set fetch-depth: 0)"
    if not _git(root, "rev-list", "--all", "--max-count=1"):
        return "it has no commit yet; make one"
    if near := _git(root, "for-each-ref", "--format=%(refname:short)", f"refs/remotes/*/{ref}").split():
        return f"did you mean {near[0]!r}?"
    return "fetch it first (git fetch)"


def _git(folder: Path, *arguments: str) -> str:
    """Run git and return its answer; raise UsageError without git or a repository, WorkerError if git failed."""
    try:
        return ask_git(folder, *arguments, timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        if "not a git repository (" in problem.reason:
            at = folder.resolve()
            raise UsageError(f"{at} is not a git repository; run the gate inside one, or use --base-python") from None
        if problem.status is None and "not end" not in problem.reason:
            raise UsageError(f"the gate compares git refs, and {problem}; use --base-python") from None
        raise WorkerError(str(problem)) from None
