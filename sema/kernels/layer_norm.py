"""Layer norm as one C++ kernel, for inference on a CPU."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, REGISTER_CHANNELS, load_library, long_array, pointer
from sema.kernels.operators import operator


@operator(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor",
    fake=lambda x, weight, bias, eps: x.new_empty(x.shape),
)
def layer_norm_native(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Compute (x − mean) / √(variance + eps) · weight + bias over the last dimension: (…, C) → (…, C), contiguous.

    Args:
        x: float32 or bfloat16. C is a multiple of 16.
        weight, bias: (C,), float32, contiguous.
        eps: is added to the variance.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes or dtypes.
    """
    x, channels = x.contiguous(), x.shape[-1]
    fits = (
        channels % REGISTER_CHANNELS == 0
        and x.dtype in NATIVE_DTYPES
        and x.device.type == "cpu"
        and weight.shape == bias.shape == (channels,)
        and all(y.dtype == torch.float32 and y.is_contiguous() and y.device.type == "cpu" for y in (weight, bias))
    )
    if not fits:
        raise ValueError("native layer norm takes float32 or bfloat16 on a CPU, C a multiple of 16")
    library = load_library("layer_norm")
    norm = library.sema_norm_float32 if x.dtype == torch.float32 else library.sema_norm_bfloat16
    out = x.new_empty(x.shape)
    shape = long_array(x.numel() // max(channels, 1), channels, torch.get_num_threads())
    norm(shape, ctypes.c_float(eps), *map(pointer, (x, weight, bias, out)))
    return out
