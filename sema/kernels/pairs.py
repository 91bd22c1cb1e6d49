"""Decide how attentions multiply bfloat16: in pairs, where the CPU has instructions for that and they are fast."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from sema.kernels.library import NativeUnavailableError, load_library


def attention_of(library: ctypes.CDLL, name: str, dtype: torch.dtype, *, depth: int) -> Callable[..., None]:
    """Return the function ``name`` for maps in float32 or bfloat16, and heads of ``depth`` channels."""
    in_pairs = dtype == torch.bfloat16 and depth % 2 == 0 and pairs_are_faster()
    kind = "pairs" if in_pairs else str(dtype).removeprefix("torch.")
    return getattr(library, f"{name}_{kind}")  # type: ignore[no-any-return]


@functools.cache
def pairs_are_faster() -> bool:
    """Measure whether pairs of bfloat16 are multiplied faster than float32: on some CPUs they take twice as long."""
    try:
        time_of_pairs = load_library("pairs").sema_time_of_pairs
    except NativeUnavailableError:
        return False
    time_of_pairs.restype = ctypes.c_double
    return 0 < time_of_pairs() < 1
