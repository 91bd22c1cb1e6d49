"""Softmax attention of all tokens as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, h heads.
"""

from __future__ import annotations

import ctypes
import itertools

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, all_even_strides, load_library, long_array, pointer
from sema.kernels.operators import operator
from sema.kernels.pairs import attention_of


@operator(
    "attend_softly(Tensor q, Tensor k, Tensor v, int heads) -> Tensor",
    fake=lambda q, k, v, heads: q.new_empty(q.shape),
)
def softmax_attention_native(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute softmax(q kᵀ) v in each head: (B, H, W, C) → (B, H, W, C), contiguous.

    Args:
        q: queries, already scaled; float32 or bfloat16. Like keys and values, they may be some of the channels of
            contiguous maps.
        k, v: keys and values, perhaps on another grid than the queries.
        heads: h.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes, strides or dtypes.
    """
    strides = all_even_strides(q, k, v)
    fits = (
        bool(strides)
        and k.shape == v.shape
        and q.shape[::3] == k.shape[::3]
        and k.shape[1] * k.shape[2] > 0
        and heads > 0
        and q.shape[-1] % heads == 0
        and q.dtype in NATIVE_DTYPES
        and all(x.dtype == q.dtype and x.device.type == "cpu" for x in (q, k, v))
    )
    if not fits:
        raise ValueError("native softmax attention takes maps of q, k and v in float32 or bfloat16 on a CPU")
    images, height, width, channels = q.shape
    library = load_library("softmax_attention")
    library.sema_softmax_scratch_floats.restype = ctypes.c_long
    shape = long_array(
        images, height * width, k.shape[1] * k.shape[2], heads, channels // heads, torch.get_num_threads(),
        *itertools.chain(*strides),
    )  # fmt: skip
    scratch = torch.empty(library.sema_softmax_scratch_floats(shape), dtype=torch.float32, device="cpu")
    out = q.new_empty(q.shape)
    attend = attention_of(library, "sema_softmax", q.dtype, depth=channels // heads)
    attend(shape, *map(pointer, (q, k, v, out, scratch)))
    return out
