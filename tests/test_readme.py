"""Test that the README's commands work, and that CI runs the same ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sema_bench.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
OURS = [command for command in COMMANDS if command.startswith("sema-bench ")]
TEST_COMMAND = next(command for command in COMMANDS if command.endswith("-m pytest -n 2"))


@pytest.mark.parametrize("command", OURS)
def test_every_command_of_the_readme_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "my_model.py"
    model.write_text("from torch import nn\n\n\ndef build():\n    return nn.Flatten()\n")
    arguments = shlex.split(command.replace("my_model.py", str(model)))[1:]
    monkeypatch.chdir(ROOT)
    if "--resume" in arguments or "cuda" in arguments:
        pytest.skip("needs a run to resume, or a GPU")
    if "timm:" in command:
        pytest.importorskip("timm")
    if "--run" in arguments:
        del arguments[arguments.index("--run") :]
    arguments.append("--help" if arguments[0] == "gate" else "--dry-run")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr


def test_ci_runs_the_readmes_test_command() -> None:
    assert TEST_COMMAND in (ROOT / ".ci/run").read_text()
    assert TEST_COMMAND in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_first_command_runs_the_main_job() -> None:
    assert COMMANDS[0].endswith("sema-bench scale --res 224..1024")
    assert COMMANDS[0].startswith("python3 -m venv")


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_inside_the_project_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
