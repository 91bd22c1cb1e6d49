"""sema-bench: measure how the cost and accuracy of vision attention change with image size."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["LoadedRun", "Run", "read_run", "run_suite"]

#: Name → its module, imported on first use: the command line starts without pandas and torch.
_MODULES = {"LoadedRun": "report.notebook", "read_run": "report.notebook", "Run": "run", "run_suite": "run"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
