"""Skip slow tests, with a reason, unless they are asked for; leave the user's caches alone."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import tempfile
from importlib.metadata import version

import pytest
import torch

from sema.inference import choices

pytest_plugins = ["pytester"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores (-n 2), and networks are small
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would take others' cores
if "PYTEST_XDIST_WORKER" not in os.environ:  # what starts the workers has made a cache for all of them
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sema-bench-cache-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
choices._FEWEST_ROUNDS = choices._MOST_ROUNDS = 1  # the fastest kernel is of no interest here


def missing() -> dict[str, str]:
    """Map each marker whose tests cannot run here to the reason."""
    reasons = {}
    if version("torch").startswith("2.6") and not torch.cuda.is_available():
        reasons["fake_cuda"] = "torch 2.6 makes no fake CUDA tensors without a driver"
    if importlib.util.find_spec("triton") is None:
        reasons["triton"] = reasons["interpreter"] = "needs the package triton"
    else:
        triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
        if triton < (3, 3):
            reasons["triton"] = "needs triton 3.3: older ones compile by another interface"
        if triton < (3, 7) and numpy >= (2, 4):
            reasons["interpreter"] = "needs triton 3.7, or NumPy below 2.4: older interpreters fail in a loop with it"
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


def pytest_collection_finish() -> None:
    gc.freeze()  # libraries and tests: no collection of garbage need visit them
