"""Every registered model in plain research style, by name: the baseline that our own forms must not fall behind."""

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
#: The smallest size of each family, and deit_small; ``--all-sizes`` selects every model.
SMALLEST = (  # noqa: SIM905
    "sema_tiny mila_tiny deit_small vminet_xs sima_small_12_p16 xcit_small_12_p16 sima_deit_small cvt_13 sima_cvt_13 "
    "swin_tiny flatten_swin_tiny inline_swin_tiny vmamba_tiny_s1l8 vim_tiny"
).split()
# Models that --models loads from this file: benchmarks/plain.py:sema_tiny.
sema_tiny = PLAIN["sema_tiny"]
