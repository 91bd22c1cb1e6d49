"""The weighted token sum of VMI-SA and the gate before it as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, N = H·W, C channels.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, REGISTER_CHANNELS, load_library, long_array, pointer
from sema.kernels.operators import operator


@operator(
    "add_token_sum(Tensor features, Tensor weights, Tensor stack) -> Tensor",
    fake=lambda features, weights, stack: features.new_empty(*features.shape[:-1], features.shape[-1] // 2),
)
def add_token_sum_native(features: Tensor, weights: Tensor, stack: Tensor) -> Tensor:
    """Compute ReLU6(a₀ Σ_j w_j x_j + a₁ x) with x = ReLU6(f1) · f2: (B, H, W, 2C) → (B, H, W, C).

    Args:
        features: f1, then f2; float32 or bfloat16, contiguous. C is a multiple of 16.
        weights: (N,), w.
        stack: (2,), a₀ and a₁; like ``weights`` float32 and contiguous.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes or dtypes.
    """
    fits = (
        features.ndim == 4
        and features.shape[-1] % (2 * REGISTER_CHANNELS) == 0
        and features.is_contiguous()
        and features.dtype in NATIVE_DTYPES
        and weights.shape == (features.shape[1] * features.shape[2],)
        and stack.shape == (2,)
        and all(x.dtype == torch.float32 and x.is_contiguous() for x in (weights, stack))
        and all(x.device.type == "cpu" for x in (features, weights, stack))
    )
    if not fits:
        raise ValueError("native token sum takes contiguous maps of float32 or bfloat16 on a CPU, C a multiple of 16")
    images, height, width, channels = features.shape
    library = load_library("token_sum")
    library.sema_token_sum_floats.restype = ctypes.c_long
    shape = long_array(images, height * width, channels // 2, torch.get_num_threads())
    scratch = torch.empty(library.sema_token_sum_floats(shape), dtype=torch.float32, device="cpu")
    out = features.new_empty(images, height, width, channels // 2)
    mix = library.sema_token_sum_float32 if features.dtype == torch.float32 else library.sema_token_sum_bfloat16
    mix(shape, *map(pointer, (features, weights, stack, out, scratch)))
    return out
