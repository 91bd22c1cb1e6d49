"""The attentions of XCiT and SimA as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, h heads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, load_library, long_array, pointer
from sema.kernels.operators import operator


@operator(
    "attend_through_channels(Tensor qkv, int heads, Tensor? temperatures) -> Tensor",
    fake=lambda qkv, heads, temperatures: qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3),
)
def attend_through_channels_native(qkv: Tensor, heads: int, temperatures: Tensor | None) -> Tensor:
    """Attend like XCA with ``temperatures``, and like SimA without: (B, H, W, 3C) → (B, H, W, C).

    Args:
        qkv: queries, keys and values; float32 or bfloat16.
        heads: h.
        temperatures: (h,), float32, contiguous.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes or dtypes.
    """
    fits = (
        qkv.ndim == 4
        and heads > 0
        and qkv.shape[-1] % (3 * heads) == 0
        and qkv.dtype in NATIVE_DTYPES
        and qkv.device.type == "cpu"
        and (temperatures is None or _fits(temperatures, heads))
    )
    if not fits:
        raise ValueError("native channel attention takes maps of q, k and v in float32 or bfloat16 on a CPU")
    qkv = qkv.contiguous()
    images, height, width, channels = qkv.shape
    library = load_library("channel_attention")
    library.sema_channel_scratch_floats.restype = ctypes.c_long
    shape = long_array(images, height * width, heads, channels // 3 // heads, torch.get_num_threads())
    scratch = torch.empty(library.sema_channel_scratch_floats(shape), dtype=torch.float32, device="cpu")
    out = qkv.new_empty(images, height, width, channels // 3)
    attend = library.sema_channels_float32 if qkv.dtype == torch.float32 else library.sema_channels_bfloat16
    attend(shape, pointer(qkv), pointer(temperatures), pointer(out), pointer(scratch))
    return out


def _fits(temperatures: Tensor, heads: int) -> bool:
    is_vector = temperatures.shape == (heads,) and temperatures.is_contiguous()
    return is_vector and temperatures.dtype == torch.float32 and temperatures.device.type == "cpu"
