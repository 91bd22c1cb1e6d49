"""Shared by all tests of ``sema``: one seed, and the benchmarks folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The plain forms are no part of a package: they are loaded from their own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
