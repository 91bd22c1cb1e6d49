"""What attends in windows, chosen by name; nothing here falls back to another choice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from torch import Tensor

WINDOW_BACKENDS = ("auto", "torch", "triton")


def load_window_kernel(name: str) -> Callable[..., Tensor] | None:
    """Return ``sema.layers.windows_triton.attend_in_windows_triton``, or None for torch's own operators.

    Raises:
        ValueError: an unknown name.
        ImportError: the package that it needs is not installed.
    """
    if name not in WINDOW_BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(WINDOW_BACKENDS)}; got {name!r}")
    if name != "triton":
        return None
    if importlib.util.find_spec("triton") is None:
        raise ImportError("backend='triton' needs the package triton, which is not installed; use backend='torch'")
    from sema.layers.windows_triton import attend_in_windows_triton

    return attend_in_windows_triton
