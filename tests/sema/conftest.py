"""Give all tests of ``sema`` one seed, and the benchmarks folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# The plain forms are not in a package: import them from their own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
