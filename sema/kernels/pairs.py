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
    kind = "float32" if dtype == torch.float32 else "bfloat16" if depth % 2 or not pairs_are_faster() else "pairs"
    return getattr(library, f"{name}_{kind}")  # type: ignore[no-any-return]


@functools.cache
def pairs_are_faster() -> bool:
    """Measure whether products of bfloat16 in pairs are faster than in float32: on some CPUs they take twice as long.

    It takes about a millisecond, once in a process.
    """
    try:
        share_of_time = load_library("pairs").sema_share_of_time
    except NativeUnavailableError:
        return False
    share_of_time.restype = ctypes.c_double
    return 0 < share_of_time() < _LARGEST_SHARE
