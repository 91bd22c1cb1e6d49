"""Give all tests of ``sema`` one seed, and the benchmarks folder on the path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sema.kernels.library import load_library

# The plain forms are not in a package: import them from their own folder.
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["float32", "bfloat16", "bfloat16 in pairs"])
def native_dtype(request, monkeypatch):
    """Return a dtype of attention kernels; those for bfloat16 multiply numbers one by one, or in pairs."""
    in_pairs = request.param.endswith("pairs")
    if in_pairs and not hasattr(load_library("softmax_attention"), "sema_softmax_pairs"):
        pytest.skip("this CPU does not multiply pairs of bfloat16")
    monkeypatch.setattr("sema.kernels.pairs.pairs_are_faster", lambda: in_pairs)
    return torch.float32 if request.param == "float32" else torch.bfloat16
