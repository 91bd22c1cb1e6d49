"""Every model of the registry in plain research style, by name: what our own forms must not fall behind."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

PLAIN: dict[str, Callable[[], nn.Module]] = {
    name: build
    for path in sorted(Path(__file__).parent.glob("plain_*.py"))
    for name, build in importlib.import_module(path.stem).PLAIN.items()
}
# Models of this file for --models: benchmarks/plain.py:sema_tiny.
sema_tiny, mila_tiny, deit_small, swin_tiny, vminet_xs, vmamba_tiny_s1l8 = (
    PLAIN[name] for name in ("sema_tiny", "mila_tiny", "deit_small", "swin_tiny", "vminet_xs", "vmamba_tiny_s1l8")
)
