"""Test messages when git fails: the whole reason on one line, and what to do."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_support import invoke
from comparison_support import loaded, record
from gate_support import git

from sema_bench.errors import SemaBenchError, UsageError, WorkerError
from sema_bench.gate.arms import arms_of_refs
from sema_bench.machine import environment
from sema_bench.machine.environment import commit_facts
from sema_bench.machine.git import GitError, ask_git
from sema_bench.report.html import page_data
from sema_bench.spec.record import Environment

#: A variable of git's own tests: it makes every repository belong to someone else.
FOREIGN = "GIT_TEST_ASSUME_DIFFERENT_OWNER"


def refused(repository: Path, ref: str = "HEAD") -> str:
    with pytest.raises(SemaBenchError) as problem, arms_of_refs(repository, ref, None):
        pass
    assert "\n" not in str(problem.value)
    return str(problem.value)


@pytest.fixture
def fake_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a git that fails with a text first on the path."""

    def install(text: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "said").write_text(text)
        (folder / "git").write_text(f"#!/bin/sh\ncat '{folder}/said' >&2\nexit 128\n")
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


def test_a_repository_of_another_owner_is_refused_with_the_command_that_mends_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOREIGN, "1")
    assert refused(repository) == (
        f"git rev-parse: fatal: detected dubious ownership in repository at '{repository}'; "
        f"run git config --global --add safe.directory {repository}"
    )
    monkeypatch.chdir(repository)
    code, _, err = invoke("gate", "run", "--base", "HEAD")
    assert (code, err.count("\n"), "\\t" in err) == (4, 1, False)
    assert f"safe.directory {repository}" in err


def test_a_commit_that_git_does_not_tell_has_its_reason_in_the_context(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = repository / "sema_bench"
    package.mkdir()
    monkeypatch.setattr(environment, "__file__", str(package / "machine" / "environment.py"))
    known = commit_facts()["commit"]
    assert known is not None
    assert len(known) == 40
    (repository / "net.py").write_text("changed")
    assert commit_facts() == {"commit": f"{known}+dirty"}
    monkeypatch.setenv(FOREIGN, "1")
    unknown = commit_facts()
    assert unknown["commit"] is None
    assert f"safe.directory {repository}" in (unknown["commit_unknown"] or "")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "elsewhere" / "machine" / "environment.py"))
    facts = commit_facts()
    assert facts["commit"] is None
    assert "an installed copy" in str(facts["commit_unknown"])
    before = Environment(hardware={"cpu": "x"}, software={"torch": "1"}, context={"commit": known})
    assert dataclasses.replace(before, context=unknown).fingerprint == before.fingerprint
    run = dataclasses.replace(loaded("a", [record("m", 224, 0.2)]), metadata={"environment": {"context": unknown}})
    (shown,) = page_data([run])["runs"]
    assert shown["commit"] == f"unknown: {unknown['commit_unknown']}"


def test_the_commit_of_a_run_is_not_that_of_the_repository_whose_hook_starts_it(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(repository, other)
    git(other, "commit", "-q", "--allow-empty", "-m", "3")
    expected = ask_git(repository, "rev-parse", "HEAD", timeout_s=10)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert ask_git(repository, "rev-parse", "HEAD", timeout_s=10) == expected


def test_a_shallow_clone_names_the_way_to_its_history(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{repository}", "shallow")
    assert refused(tmp_path / "shallow", "HEAD~1") == (
        "--base: this repository has no commit 'HEAD~1'; "
        "the clone is shallow: run git fetch --unshallow (in actions/checkout, set fetch-depth: 0)"
    )


def test_an_unknown_ref_has_a_hint(repository: Path, tmp_path: Path) -> None:
    assert refused(repository, "gone").endswith("has no commit 'gone'; fetch it first (git fetch)")
    assert refused(repository, "@{u}").endswith("has no commit '@{u}'; no upstream configured for branch 'main'")
    git(repository, "update-ref", "refs/remotes/origin/topic", "HEAD")
    assert refused(repository, "topic").endswith("did you mean 'origin/topic'?")
    git(tmp_path, "init", "-q", "empty")
    assert refused(tmp_path / "empty").endswith("it has no commit yet; make one")


def test_a_repository_without_a_working_tree_is_reported_as_one(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repository), "bare.git")
    for folder in (tmp_path / "bare.git", repository / ".git"):
        assert refused(folder) == (
            "git rev-parse: fatal: this operation must be run in a work tree; "
            "it has no working tree; run it in a clone of it"
        )


def test_a_worktree_whose_repository_is_gone_is_not_called_no_repository(repository: Path, tmp_path: Path) -> None:
    git(repository, "worktree", "add", "-q", "--detach", str(tmp_path / "linked"), "HEAD")
    repository.rename(tmp_path / "unmounted")
    message = refused(tmp_path / "linked")
    assert message.startswith(f"git rev-parse: fatal: not a git repository: {repository}/.git/worktrees/linked; ")
    assert message.endswith("its .git names a folder that is not here; mount or clone the whole repository")


def test_without_git_the_way_without_refs_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with (
        pytest.raises(UsageError, match="git is not installed; use --base-python"),
        arms_of_refs(repository, "HEAD", None),
    ):
        pass
    (tmp_path / "bin" / "git").write_text("")
    with pytest.raises(UsageError, match="git cannot be run: Permission denied"), arms_of_refs(repository, "x", None):
        pass


@pytest.mark.parametrize(
    ("said", "reason", "mend"),
    [
        (
            "hint: see the manual\nfatal: Unable to create '/r/.git/index.lock': File exists.\n\nAnother git process …",
            "fatal: Unable to create '/r/.git/index.lock': File exists.",
            "wait for the other git process, or remove that file if there is none",
        ),
        (
            "Preparing worktree\nfatal: '/w' is a missing but locked worktree;\nuse 'git worktree add -f -f'",
            "fatal: '/w' is a missing but locked worktree;",
            "run git worktree unlock of that folder, and git worktree prune",
        ),
        ("warning: x\nerror: a\tb\nmore", "error: a b", ""),
        ("fatal: could not create directory of '.git/worktrees/base': Read-only file system", "", "make .git and"),
        ("fatal: detected dubious ownership in repository at '/my repo'", "", "safe.directory '/my repo'"),
        ("odd\x1b[31m words", "odd\\x1b[31m words", ""),
        ("", "code 128", ""),
    ],
)
def test_the_line_that_says_why_is_found_in_what_git_says(
    fake_git: Callable[[str], None], tmp_path: Path, said: str, reason: str, mend: str
) -> None:
    fake_git(said)
    with pytest.raises(GitError) as problem:
        ask_git(tmp_path, "worktree", "add", timeout_s=10)
    assert problem.value.status == 128
    assert problem.value.reason.startswith("git worktree: ")
    assert problem.value.reason.endswith(reason)
    assert mend in problem.value.mend
    assert bool(mend) == bool(problem.value.mend)


def test_a_boundary_of_file_systems_does_not_hide_that_there_is_no_repository(
    fake_git: Callable[[str], None], tmp_path: Path
) -> None:
    fake_git(
        "fatal: not a git repository (or any parent up to mount point /)\n"
        "Stopping at filesystem boundary (GIT_DISCOVERY_ACROSS_FILESYSTEM not set).\n"
    )
    assert "is not a git repository; run the gate inside one" in refused(tmp_path)


def test_git_is_asked_in_english(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text('#!/bin/sh\necho "fatal: $LC_ALL $LANGUAGE" >&2\nexit 1\n')
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(WorkerError, match="git rev-parse: fatal: C C"), arms_of_refs(repository, "HEAD", None):
        pass
