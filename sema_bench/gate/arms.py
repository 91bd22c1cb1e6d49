"""The two arms of a gate: a state of the code, and how to start a process that runs its models.

Both arms are measured with the harness that runs the gate; of an arm comes what it measures: the package ``sema`` and
model files of a git ref, checked out beside the repository, or another Python environment. That the models really come
from there is checked before anything is timed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.errors import UsageError, WorkerError
from sema_bench.machine.git import GitError, ask_git
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.text.escape import printable

_WORKER = Path(__file__).with_name("arm_worker.py")
_GIT_LIMIT_S = 300.0
_LIMIT_S = 120.0


@dataclass(frozen=True)
class Arm:
    """One side of the comparison.

    Attributes:
        name: ``base`` or ``head``.
        what: ref and commit, or environment, as tables show it.
        python: interpreter of its processes.
        folder: where its code lies; None where it is installed.
        within: the place in it where its processes work, as the gate does in the repository.
        extra_work: share of its time by which its forward pass is slowed down (self-tests).
        environment: more variables of its processes.
        compiler_caches: folder in which this arm has one for what compilers keep, by its name.
        command: how to start a worker; tests pass one of their own.
    """

    name: str
    what: str
    python: str = sys.executable
    folder: Path | None = None
    within: Path = Path()
    extra_work: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    compiler_caches: Path | None = None
    command: Sequence[str] = ()

    def start(self, cell: Cell) -> WorkerProcess:
        """Start a worker for cells that share allocator and threads with ``cell``; it may not be ready yet.

        Raises:
            WorkerError: it cannot be started.
        """
        variables = dict(self.environment)
        if self.compiler_caches is not None:
            variables[COMPILER_CACHE] = str(self.compiler_caches / self.name)
        if self.folder is not None:
            paths = [str(path) for path in (self.folder, self.folder / "src") if path.is_dir()]
            variables["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        return WorkerProcess(
            allocator=cell.allocator,
            threads=cell.threads,
            command=self.command or (self.python, str(_WORKER)),
            environment=variables,
            folder=self._working_folder(),
        )

    def _working_folder(self) -> Path | None:
        if self.folder is None:
            return None
        inner = self.folder / self.within
        return inner if inner.is_dir() else self.folder

    def check(self, cell: Cell) -> dict[str, str]:
        """Make sure that its processes start, and take ``sema`` from its folder where there is one.

        Returns:
            Where it takes ``sema`` from, and the version of torch.

        Raises:
            WorkerError: they do not.
        """
        worker = self.start(cell)
        try:
            worker.wait_until_ready()
            found = worker.ask("origin", timeout_s=_LIMIT_S)
        except CellFailure as failure:
            last = str(failure.details.get("worker_output", "")).strip().splitlines()
            why = last[-1] if last else failure.reason
            raise WorkerError(f"{self.name} ({self.what}) cannot be imported: {printable(why)[:300]}") from None
        finally:
            worker.close()
        origin = Path(str(found.get("sema") or "."))
        places = [] if self.folder is None else [self.folder / "sema", self.folder / "src" / "sema"]
        inside = any((place / "__init__.py").exists() for place in places)
        if inside and self.folder is not None and self.folder.resolve() not in origin.resolve().parents:
            raise WorkerError(
                f"{self.name} ({self.what}) imports sema from {origin.parent}, not from its own code; "
                f"run the gate with --{self.name}-python of an environment in which that is installed"
            )
        return {key: str(value) for key, value in found.items()}


def check_arms(arms: Sequence[Arm], cell: Cell, told: Callable[[str], None]) -> None:
    """Make sure that both arms run, and are not one and the same.

    Raises:
        WorkerError, UsageError: they do not, or are.
    """
    origins = []
    for arm in arms:
        told(f"{arm.name}: {arm.what}")
        origins.append(arm.check(cell))
        told(f"{arm.name}: sema from {origins[-1].get('sema')}, torch {origins[-1].get('torch')}")
    if arms[0].folder is None and origins[0] == origins[1]:
        raise UsageError(
            f"both environments have the same sema ({origins[0].get('sema')}) and torch {origins[0].get('torch')}: "
            "nothing can differ; install base and head in environments of their own"
        )


@contextlib.contextmanager
def arms_of_refs(repository: Path, base: str, head: str | None) -> Iterator[tuple[Arm, Arm]]:
    """Check out both refs beside the repository, and remove them at the end; a head of None is the working tree.

    Raises:
        UsageError: it is no repository, or there is no such ref.
        WorkerError: git failed.
    """
    root = root_of(repository)
    within = repository.resolve().relative_to(root.resolve())
    with tempfile.TemporaryDirectory(prefix="sema-bench-gate-", ignore_cleanup_errors=True) as scratch:
        try:
            arms = [_checked_out(root, Path(scratch), name, ref) for name, ref in (("base", base), ("head", head))]
            yield replace(arms[0], within=within), replace(arms[1], within=within)
        finally:
            for name in ("base", "head"):
                with contextlib.suppress(WorkerError, UsageError):
                    _git(root, "worktree", "remove", "--force", str(Path(scratch) / name))


def root_of(folder: Path) -> Path:
    """Return the top folder of the repository in which ``folder`` lies.

    Raises:
        UsageError: it lies in none.
    """
    return Path(_git(folder, "rev-parse", "--show-toplevel"))


def is_dirty(repository: Path) -> bool:
    """Tell whether tracked files differ from the last commit.

    Raises:
        UsageError: it is no repository.
    """
    return bool(_git(repository, "status", "--porcelain", "--untracked-files=no"))


def arm_of_python(name: str, python: str) -> Arm:
    """Return the arm of an installed environment.

    Raises:
        UsageError: it is no Python that runs.
    """
    try:
        told = subprocess.run(
            [python, "-c", "import sys; print(sys.version.split()[0])"],
            capture_output=True, text=True, timeout=_LIMIT_S, errors="replace", check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as problem:
        why = problem.strerror if isinstance(problem, OSError) else "it does not answer"
        raise UsageError(f"--{name}-python: {python!r} does not run: {why}") from None
    if told.returncode or not re.fullmatch(r"\d+\.\d+\.\S+\s*", told.stdout):
        raise UsageError(f"--{name}-python: {python!r} is no Python")
    return Arm(name, f"{python} ({told.stdout.strip()})", python=python)


@contextlib.contextmanager
def with_compiler_caches(arms: Sequence[Arm]) -> Iterator[list[Arm]]:
    """Give each arm a folder of its own for what compilers keep: one arm must not run what the other compiled.

    So has the base's second process: what a compiler was lucky with belongs to the noise.
    """
    with tempfile.TemporaryDirectory(prefix="sema-bench-compiled-", ignore_cleanup_errors=True) as scratch:
        yield [replace(arm, compiler_caches=Path(scratch)) for arm in arms]


def _checked_out(root: Path, scratch: Path, name: str, ref: str | None) -> Arm:
    if ref is None:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return Arm(name, f"working tree on {commit}", folder=root)
    if not re.fullmatch(r"[A-Za-z0-9._/@^~{}+-]{1,200}", ref) or ref.startswith("-"):
        raise UsageError(f"--{name}: {ref[:200]!r} is no git ref")
    try:
        commit = ask_git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        if problem.status is None:
            raise WorkerError(str(problem)) from None
        said = re.search("(?:fatal|error): (.*)", problem.reason)
        why = said[1] if said else _how_to_get(root, ref)
        raise UsageError(f"--{name}: this repository has no commit {ref!r}; {why}") from None
    _git(root, "worktree", "add", "--detach", "--force", str(scratch / name), commit)
    return Arm(name, f"{ref} ({commit[:9]})", folder=scratch / name)


def _how_to_get(root: Path, ref: str) -> str:
    """Return how a ref gets into a repository that does not have it."""
    if _git(root, "rev-parse", "--is-shallow-repository") == "true":
        return "the clone is shallow: run git fetch --unshallow (in actions/checkout, set fetch-depth: 0)"
    if not _git(root, "rev-list", "--all", "--max-count=1"):
        return "it has no commit yet; make one"
    if near := _git(root, "for-each-ref", "--format=%(refname:short)", f"refs/remotes/*/{ref}").split():
        return f"did you mean {near[0]!r}?"
    return "fetch it first (git fetch)"


def _git(folder: Path, *arguments: str) -> str:
    """Return what git answers.

    Raises:
        UsageError: there is no git, or ``folder`` lies in no repository.
        WorkerError: git failed.
    """
    try:
        return ask_git(folder, *arguments, timeout_s=_GIT_LIMIT_S)
    except GitError as problem:
        if "not a git repository (" in problem.reason:
            place = folder.resolve()
            raise UsageError(f"{place} is no git repository; run the gate inside one, or use --base-python") from None
        if problem.status is None and "not end" not in problem.reason:
            raise UsageError(f"the gate compares git refs, and {problem}; use --base-python") from None
        raise WorkerError(str(problem)) from None
