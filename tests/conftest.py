"""What is slow is skipped, with its reason, unless it is asked for; caches of the user stay as they are."""

from __future__ import annotations

import os
import tempfile

import pytest

pytest_plugins = ["pytester"]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share the cores (-n 2), and networks are small
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="sema-bench-cache-")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if any("::" in argument for argument in config.args):
        return
    for marker in ("slow", "faults"):
        if marker in config.getoption("markexpr"):
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"{marker}: run with -m {marker}"))
