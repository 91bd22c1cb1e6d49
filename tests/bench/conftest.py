"""Fixtures of several files, and a memory for what a fresh process says of this machine: it takes seconds to ask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from gate_support import git

from sema_bench import environment

_ask = environment._ask
_answers: dict[object, str] = {}


def _ask_once(python: str, models: Sequence[str], timeout_s: float) -> str:
    variables = frozenset(item for item in os.environ.items() if item[0] != "PYTEST_CURRENT_TEST")
    key = (python, tuple(models), timeout_s, variables)
    if key not in _answers:
        _answers[key] = _ask(python, models, timeout_s)
    return _answers[key]


environment._ask = _ask_once


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two commits, each of which changes the model in net.py."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in (1, 2):
        (folder / "net.py").write_text(f"def build():\n    return {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", str(number))
    return folder
