"""Shared fixtures, and a cache of this machine's environment: asking a fresh process for it takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from gate_support import git

from sema_bench.machine import environment


@pytest.fixture(scope="session", autouse=True)
def environments_are_asked_for_once() -> Iterator[None]:
    survey, answers = environment._survey, {}

    def ask_once(models: Sequence[str]) -> dict[str, Any]:
        variables = frozenset(item for item in os.environ.items() if item[0] != "PYTEST_CURRENT_TEST")
        key = (sys.executable, tuple(models), variables)
        if key not in answers:
            answers[key] = survey(models)
        return answers[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_survey", ask_once)
        yield


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with two commits; each changes the model in net.py."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in (1, 2):
        (folder / "net.py").write_text(f"def build():\n    return {number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", str(number))
    return folder
