"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest
from gate_support import git


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
