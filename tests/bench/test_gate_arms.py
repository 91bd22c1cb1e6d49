"""Test the arms of a gate: checked-out refs, environments, and that each arm runs its own code."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
from gate_support import git
from run_support import FAKE_WORKER

from sema_bench.errors import UsageError, WorkerError
from sema_bench.gate.arms import Arm, arm_of_python, arms_of_refs, check_arms, is_dirty, with_compiler_caches
from sema_bench.gate.suites import check_files, gated
from sema_bench.machine.processes import COMPILER_CACHE
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import build_plan
from sema_bench.spec.suite import Suite, load_suite

CELL = Cell(model="sema_micro", height=64, width=64)


def test_refs_are_checked_out_beside_the_repository_and_removed(repository: Path) -> None:
    with arms_of_refs(repository, "HEAD~1", "main") as (base, head):
        texts = [(arm.folder / "net.py").read_text() for arm in (base, head) if arm.folder]
        assert texts == ["def build():\n    return 1\n", "def build():\n    return 2\n"]
        assert base.label.startswith("HEAD~1 (")
        folders = [base.folder, head.folder]
    assert not any(folder and folder.exists() for folder in folders)
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert listed.stdout.count("\n") == 1
    with arms_of_refs(repository, "HEAD", None) as (_, head):
        assert head.folder == repository
        assert head.label.startswith("working tree on ")


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("gone", "has no commit 'gone'"),
        ("--upload-pack=x", "is not a git ref"),
        ("a b;c", "is not a git ref"),
        ("..", "has no"),
    ],
)
def test_refs_that_are_none_are_refused(repository: Path, ref: str, message: str) -> None:
    with pytest.raises(UsageError, match=message), arms_of_refs(repository, ref, None):
        pass


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a git repository"), arms_of_refs(tmp_path, "HEAD", None):
        pass


def test_a_hook_that_runs_a_gate_loses_nothing(repository: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    git(repository, "worktree", "add", "--detach", str(kept), "HEAD")
    kept.rename(tmp_path / "unmounted")
    code = (
        "from pathlib import Path; from sema_bench.gate.arms import arms_of_refs\n"
        "with arms_of_refs(Path('.'), 'HEAD~1', None) as arms: print(arms[0].label)\n"
    )
    hook = repository / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    hook.chmod(0o755)
    (repository / "net.py").write_text("def build():\n    return 3\n")
    (repository / "more.py").write_text("")
    git(repository, "add", "more.py")
    git(repository, "commit", "-q", "-a", "-m", "3")
    listed = subprocess.run(
        ["git", "-C", str(repository), "show", "--stat", "--format=%s", "HEAD"], capture_output=True, text=True
    ).stdout
    assert listed.split()[0] == "3"
    assert "net.py" in listed
    assert "more.py" in listed
    (tmp_path / "unmounted").rename(kept)
    assert subprocess.run(["git", "-C", str(kept), "status"], capture_output=True).returncode == 0


def test_each_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler's random choices must differ from batch to batch, like everything random in a process."""
    started: list[str] = []

    def start(*, environment: Mapping[str, str], **_: object) -> None:
        started.append(environment[COMPILER_CACHE])
        assert Path(started[-1]).is_dir()

    monkeypatch.setattr("sema_bench.gate.arms.WorkerProcess", start)
    with with_compiler_caches([Arm("base", "x"), Arm("head", "y")]) as arms:
        for arm in (*arms, *arms):
            arm.start(CELL)
    assert len(set(started)) == 4


def test_uncommitted_changes_are_noticed(repository: Path) -> None:
    assert not is_dirty(repository)
    (repository / "net.py").write_text("changed")
    assert is_dirty(repository)


def test_a_python_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--base-python: 'no-such-python' does not run"):
        arm_of_python("base", "no-such-python")
    with pytest.raises(UsageError, match=r"--head-python: '/bin/false' is not a Python interpreter"):
        arm_of_python("head", "/bin/false")


def test_models_come_from_the_arm_and_the_harness_from_here(tmp_path: Path) -> None:
    """An arm imports its own sema, whatever is installed. One process here imports torch."""
    package = tmp_path / "arm" / "sema"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("create_model = None\nraise ImportError('it is [broken]')\n")
    with pytest.raises(WorkerError, match=r"head \(x\) cannot be imported: .*it is \[broken\]"):
        Arm("head", "x", folder=tmp_path / "arm").check(CELL)


def working_folder(arm: Arm) -> Path:
    worker = dataclasses.replace(arm, command=FAKE_WORKER).start(CELL)
    try:
        return Path(psutil.Process(worker.pid).cwd())
    finally:
        worker.kill()


def test_an_arm_works_where_the_gate_does(repository: Path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    (inner / "net.py").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "3")
    with arms_of_refs(inner, "HEAD", None) as (base, head):
        assert base.folder is not None
        assert working_folder(base) == base.folder.resolve() / "inner"
        assert working_folder(head) == inner.resolve()
    with arms_of_refs(inner, "HEAD~1", None) as (base, _):
        assert base.folder is not None
        assert working_folder(base) == base.folder.resolve(), "it had no such folder"


def test_environments_that_are_one_and_the_same_are_refused() -> None:
    lines: list[str] = []
    with pytest.raises(UsageError, match=r"both environments have the same sema .* nothing can differ"):
        check_arms([arm_of_python(name, sys.executable) for name in ("base", "head")], CELL, lines.append)
    assert any("sema from" in line and "torch" in line for line in lines)


# Suites of both arms

SUITE = """
claim = "c"
cost = "c"
models = ["sema_micro", "deit_tiny"]
res = "64"
[gate]
delta = 0.03
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.toml"
    path.write_text(SUITE)
    return path


def suite(tmp_path: Path, text: str) -> Suite:
    path = tmp_path / "head.toml"
    path.write_text(text)
    return load_suite(str(path))


def as_it_is(unchanged: Suite) -> Suite:
    return unchanged


def test_a_cell_that_a_change_drops_from_the_suite_has_vanished(tmp_path: Path, base: Path) -> None:
    head = suite(tmp_path, SUITE.replace(', "deit_tiny"', ', "vminet_ti"'))
    result = gated(head, base, as_it_is, own_delta=False)
    assert [cell.model for cell in result.plan.cells] == ["sema_micro", "vminet_ti"]
    assert [cell.model for cell in result.vanished] == ["deit_tiny"]
    assert gated(head, None, as_it_is, own_delta=False).vanished == ()


def test_a_model_that_a_change_removes_altogether_has_vanished(tmp_path: Path, base: Path) -> None:
    base.write_text(SUITE.replace('"deit_tiny"', '"no_such_model"'))
    result = gated(suite(tmp_path, SUITE.replace(', "deit_tiny"', "")), base, as_it_is, own_delta=False)
    assert [(cell.model, cell.height) for cell in result.vanished] == [("no_such_model", 64)]


def test_a_change_does_not_set_its_own_bar(tmp_path: Path, base: Path) -> None:
    head = suite(tmp_path, SUITE.replace("0.03", "0.5"))
    result = gated(head, base, as_it_is, own_delta=False)
    assert result.table.deltas == {"sema_micro@64x64": 0.03, "deit_tiny@64x64": 0.03}
    assert "δ is 3.0% in the base and 50.0% in the head" in result.notes[0]
    assert gated(head, base, as_it_is, own_delta=True).table.deltas == {}


def test_a_suite_of_the_base_that_cannot_be_read_is_reported(tmp_path: Path, base: Path) -> None:
    base.write_text("models = [")
    result = gated(suite(tmp_path, SUITE), base, as_it_is, own_delta=False)
    assert result.vanished == ()
    assert "the base's suite cannot be read, so vanished cells go unnoticed" in result.notes[0]


def test_a_file_that_both_arms_would_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for folder in (tmp_path, root):
        (folder / "net.py").write_text("def build():\n    pass\n")
    monkeypatch.chdir(root)

    def check(name: str) -> None:
        gated_suite = suite(tmp_path, SUITE.replace('"sema_micro", "deit_tiny"', f'"{name}"'))
        check_files(build_plan(gated_suite, device="cpu", threads=1), root)

    check("net.py:build")
    for name in (f"{root}/net.py:build", "../net.py:build"):
        with pytest.raises(UsageError, match="base and head share"):
            check(name)
