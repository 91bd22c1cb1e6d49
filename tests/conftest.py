"""What is slow is skipped, with its reason, unless it is asked for; caches of the user stay as they are."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from importlib.metadata import version

import pytest
import torch

pytest_plugins = ["pytester"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores (-n 2), and networks are small
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sema-bench-cache-")


def missing() -> dict[str, str]:
    """Marker → why its tests cannot run here."""
    reasons = {}
    if version("torch").startswith("2.6") and not torch.cuda.is_available():
        reasons["fake_cuda"] = "torch 2.6 makes no fake CUDA tensors without a driver"
    if importlib.util.find_spec("triton") is None:
        reasons["triton"] = "needs the package triton"
    elif tuple(map(int, version("triton").split(".")[:2])) < (3, 3):
        reasons["triton"] = "needs triton 3.3: older interpreters fail with NumPy 2.4, and compile by another interface"
    return reasons


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, reason in missing().items():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if any("::" in argument for argument in config.args):
        return
    for marker in ("slow", "faults"):
        if marker in config.getoption("markexpr"):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: run with -m {marker}"))
