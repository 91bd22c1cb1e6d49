"""Test ``PYTHONWARNINGS=error``: user code fails on its own warnings; a library's or ours fail no measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_support import fake_agents, make_plan

from sema_bench.cluster.agent_process import AgentProcess
from sema_bench.driver.worker_process import CellFailure, WorkerProcess
from sema_bench.errors import WorkerError
from sema_bench.spec.cell import Cell
from sema_bench.worker.protocol import Inspect, Prepare, Sample, WorkloadSpec, encode_request

PROBE = """
import os, sys, warnings
sys.path[:0] = [{folder!r}, {libraries!r}]
from sema_bench.machine.processes import child_environment, let_libraries_warn
let_libraries_warn()
import library.part, mine
for module in (library.part, mine):
    try:
        module.act()
        print("went on")
    except {category}:
        print("failed")
print(child_environment().get("PYTHONWARNINGS"), os.environ.get("PYTHONWARNINGS"), sys.warnoptions)
"""


def probe(folder: Path, *options: str, given: str | None, category: str = "DeprecationWarning") -> list[str]:
    """Return the fate of warnings from a library and from the user's code, and the options of child processes."""
    libraries = folder / "site-packages"
    (libraries / "library").mkdir(parents=True)
    (libraries / "library" / "__init__.py").touch()
    act = f"import warnings\ndef act():\n    warnings.warn('old', {category})\n"
    (libraries / "library" / "part.py").write_text(act)
    (folder / "mine.py").write_text(act)
    code = PROBE.format(folder=str(folder), libraries=str(libraries), category=category)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    environment |= {} if given is None else {"PYTHONWARNINGS": given}
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("given", ["error", "e", "default,error", "error::DeprecationWarning"])
def test_code_of_the_user_fails_of_its_warnings_and_libraries_do_not(tmp_path: Path, given: str) -> None:
    library, mine, _ = probe(tmp_path, given=given)
    assert (library, mine) == ("went on", "failed")


def test_an_option_of_the_command_line_is_meant_the_same_way(tmp_path: Path) -> None:
    library, mine, inherited = probe(tmp_path, "-W", "error", given=None)
    assert (library, mine, inherited) == ("went on", "failed", "None None []")


def test_other_wishes_stay_as_they_are(tmp_path: Path) -> None:
    for number, (given, expected) in enumerate(
        (
            ("ignore", ["went on", "went on", "ignore ignore ['ignore']"]),
            ("error,ignore::DeprecationWarning", ["went on", "went on"]),  # the last one counts
            ("error:::library.part", ["failed", "went on", "error:::library.part error:::library.part"]),  # by name
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for line, start in zip(probe(folder, given=given), expected, strict=False):
            assert line.startswith(start), given


def test_processes_of_ours_inherit_the_wish_and_those_of_libraries_no_errors(tmp_path: Path) -> None:
    *_, inherited = probe(tmp_path, given="error,once::UserWarning")
    assert inherited == "error,once::UserWarning once::UserWarning ['once::UserWarning']"


def test_a_worker_measures_and_leaves_no_file_open() -> None:
    """One process that imports torch, fvcore and timm."""
    workload = WorkloadSpec(Cell(model="timm:resnet10t", height=32, width=32), seed=0)
    requests = [Inspect(workload, ("params", "macs")), Prepare(workload, 1.0, 0.1), Sample(1)]
    done = subprocess.run(
        [sys.executable, "-m", "sema_bench.worker.server", "--allocator", "retain", "--parent", str(os.getpid())],
        input="".join(encode_request(number, request) for number, request in enumerate(requests)),
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    ready, *answers = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, ready) == (0, {"ready": True}), done.stderr
    assert [list(answer) for answer in answers] == [["number", "ok"]] * 3, answers
    assert "Warning" not in done.stderr


def test_a_worker_that_cannot_be_started_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: opened.append(real()) or opened[-1])
    with pytest.raises(WorkerError, match="cannot start a worker"):
        WorkerProcess(allocator="retain", threads=1, command=("/no/such/program",))
    assert [file.closed for file in opened] == [True]


def test_a_worker_whose_python_prints_at_its_start_says_so() -> None:
    worker = WorkerProcess(allocator="retain", threads=1, command=(sys.executable, "-c", "print('hello'); input()"))
    with pytest.raises(CellFailure, match=r"the worker began with 'hello'; something prints when Python starts"):
        worker.wait_until_ready()


@pytest.mark.parametrize("end", ["close", "cancel", "lost"])
def test_an_agent_that_ended_leaves_no_pipe_open(tmp_path: Path, end: str) -> None:
    plan = make_plan(models=("good",), sides=(224,))
    (agent,) = fake_agents(plan, tmp_path, 1).values()
    assert isinstance(agent, AgentProcess)
    assert len(list(agent.run([(plan.groups[0], {})]))) == 1
    process = agent._process
    assert process is not None
    if end == "lost":
        process.kill()
        agent._lost()
    else:
        getattr(agent, end)()
    assert [stream.closed for stream in (process.stdin, process.stdout) if stream] == [True, True]


@pytest.mark.faults
@pytest.mark.parametrize(
    "arguments",
    [
        ["scale", "--models", "timm:resnet10t", "--mode", "optimized", "--res", "32", "--probes", "macs,throughput"],
        ["scale", "--models", "sema_micro", "--mode", "compile", "--res", "32", "--probes", "throughput"],
        ["scale", "--models", "sema_micro", "--mode", "train", "--res", "32", "--probes", "throughput,memory"],
        ["plan", "--models", "sema_micro", "--res", "32"],
        ["ledger", "timm:resnet10t", "--res", "32"],
        ["dispersion", "--models", "sema_micro", "--keys", "16,64,256", "--samples", "2"],
        ["maps", "--models", "sema_micro", "--res", "64", "--samples", "1"],
        ["train", "--model", "timm:resnet10t", "--data", "folder:images", "--res", "32", "--epochs", "1"],
        ["verify"],
        ["env"],
    ],
    ids=lambda arguments: " ".join(arguments[:5]),
)
def test_every_command_works_where_warnings_are_errors(tmp_path: Path, arguments: list[str]) -> None:
    if arguments[0] == "scale":
        arguments = [*arguments, "--time-limit", "0.2"]
    if arguments[0] == "train":
        arguments = [*arguments, "--device", "cpu", "--batch", "2", "--workers", "1"]
        for folder in (tmp_path / "images" / split / name for split in ("train", "val") for name in "ab"):
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), (number * 60, 0, 0)).save(folder / f"{number}.png")
    done = subprocess.run(
        [sys.executable, "-m", "sema_bench", *arguments],
        capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warning" not in done.stderr
