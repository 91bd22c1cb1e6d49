"""Activations as one C++ kernel that works in place, for inference on a CPU.

In oneDNN's epilogue, GELU and SiLU take a third of a product's time and more on CPUs with AVX2.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, NativeUnavailableError, load_library, long_array, pointer
from sema.kernels.operators import is_traced

#: Name → the function in torch, in the order of their numbers in vectors.h.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "silu": F.silu,
}


def activate(x: Tensor, act: str) -> Tensor:
    """Apply an activation of ``ACTIVATIONS``; it may overwrite ``x``.

    C++ needs a built kernel, and numbers without gaps on a CPU; else, and under a compiler, torch's function runs.
    """
    if act == "none":
        return x
    dense = x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))
    fits = dense and x.device.type == "cpu" and x.dtype in NATIVE_DTYPES and not is_traced(x)
    library = _library() if fits else None
    if library is None:
        return ACTIVATIONS[act](x)
    kernel = library.sema_activate_float32 if x.dtype == torch.float32 else library.sema_activate_bfloat16
    kernel(long_array(x.numel(), list(ACTIVATIONS).index(act), torch.get_num_threads()), pointer(x))
    return x


@functools.cache
def _library() -> ctypes.CDLL | None:
    try:
        return load_library("activation")
    except NativeUnavailableError:
        return None
