"""What all tests of ``sema`` share: the registry's attentions and the option variants that are tested beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# research_style.py is no part of a package: it is loaded from its own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
