"""The README's commands work, and CI runs the same ones."""

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


#: What makes a command short: options that take the place of those before them. Some would take minutes, or need files.
SHORT = {
    "plan": ["--no-memory"],
    "selftest": ["--help"],
    "gate": ["--help"],
    "evaluate": ["--help"],
    "train": [
        "--epochs",
        "1",
        "--data",
        "digits:field,images=9",
        "--set",
        "epoch_images=64",
        "--set",
        "warmup_epochs=0",
    ],
    "dispersion": ["--keys", "16..256", "--samples", "2", "--models", "sema_micro[linear]"],
    "maps": ["--samples", "1"],
}


@pytest.mark.parametrize("command", OURS)
def test_every_command_of_the_readme_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = shlex.split(command)[1:]
    monkeypatch.chdir(ROOT)
    if "--resume" in arguments or "gpu" in command:
        pytest.skip("needs a run to resume, or a GPU")
    arguments += SHORT.get(arguments[0], [])
    if arguments[0] in ("train", "dispersion", "maps"):
        arguments += ["--out", str(tmp_path)]
    if arguments[0] == "report":
        arguments = [*(word for word in arguments if word != "--open"), "-o", str(tmp_path / "report.html")]
    if arguments[0] in ("scale", "run"):
        arguments.append("--dry-run")
        while "--run" in arguments:
            del arguments[arguments.index("--run") : arguments.index("--run") + 2]
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
