"""Decide how attentions multiply bfloat16: in pairs, where the CPU has instructions for that and they are fast."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch

from sema.kernels.library import NativeUnavailableError, load_library

#: The kernels that can multiply pairs.
PAIRED = ("window_attention", "softmax_attention", "channel_attention")
#: Pairs must take less than this share of the time of float32, because packing them takes time, too.
_LARGEST_SHARE = 0.9


def attention_of(library: ctypes.CDLL, name: str, dtype: torch.dtype, *, depth: int) -> Callable[..., None]:
    """Return the function ``name`` for maps in float32 or bfloat16, and heads of ``depth`` channels."""
    in_pairs = dtype == torch.bfloat16 and depth % 2 == 0 and pairs_are_faster()
    kind = "pairs" if in_pairs else str(dtype).removeprefix("torch.")
    return getattr(library, f"{name}_{kind}")  # type: ignore[no-any-return]


@functools.cache
def pairs_are_faster() -> bool:
    """Measure, once in a process, if bfloat16 in pairs is multiplied faster than float32.

    It is not on every CPU that has the instruction: on an Intel Xeon without AMX, pairs took twice as long.
    """
    try:
        share_of_time = load_library("pairs").sema_share_of_time
    except NativeUnavailableError:
        return False
    share_of_time.restype = ctypes.c_double
    return 0 < share_of_time() < _LARGEST_SHARE
