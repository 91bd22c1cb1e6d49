"""The attentions of XCiT, SimA and InLine as one C++ kernel, for inference on a CPU.

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
    "attend_through_channels(Tensor q, Tensor k, Tensor v, int heads, Tensor? temperatures=None, Tensor? add=None) "
    "-> Tensor",
    fake=lambda q, k, v, heads, temperatures=None, add=None: q.new_empty(q.shape),
)
def attend_through_channels_native(
    q: Tensor, k: Tensor, v: Tensor, heads: int, temperatures: Tensor | None = None, add: Tensor | None = None
) -> Tensor:
    """Attend like XCA with ``temperatures``, like InLine with ``add``, like SimA without both: (B, H, W, C) → the same.

    Args:
        q: queries; float32 or bfloat16. Like all maps, they may be some of the channels of contiguous ones.
        k, v: keys and values; for SimA, their grid may be another one than that of the queries.
        heads: h.
        temperatures: (h,), float32, contiguous.
        add: InLine's local term, like ``q``: the result is the sum of both.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes, strides or dtypes.
    """
    maps = (q, k, v) if add is None else (q, k, v, add)
    strides = all_even_strides(*maps)
    fits = (
        bool(strides)
        and k.shape == v.shape
        and q.shape[::3] == k.shape[::3]
        and q.shape[1] * q.shape[2] > 0
        and k.shape[1] * k.shape[2] > 0
        and heads > 0
        and q.shape[-1] % heads == 0
        and q.dtype in NATIVE_DTYPES
        and all(x.dtype == q.dtype and x.device.type == "cpu" for x in maps)
        and (temperatures is None or (k.shape == q.shape and _fits(temperatures, heads)))
        and (add is None or (temperatures is None and k.shape == q.shape == add.shape))
    )
    if not fits:
        raise ValueError("native channel attention takes maps of q, k and v in float32 or bfloat16 on a CPU")
    images, height, width, channels = q.shape
    library = load_library("channel_attention")
    library.sema_channel_scratch_floats.restype = ctypes.c_long
    kind = 0 if temperatures is not None else 1 if add is None else 2  # as in the kernel: XCA, SimA, InLine
    shape = long_array(
        images, height * width, k.shape[1] * k.shape[2], heads, channels // heads, kind, torch.get_num_threads(),
        *itertools.chain(*strides, (0, 0) if add is None else ()),
    )  # fmt: skip
    scratch = torch.empty(library.sema_channel_scratch_floats(shape), dtype=torch.float32, device="cpu")
    out = q.new_empty(q.shape)
    attend = attention_of(library, "sema_channels", q.dtype, depth=channels // heads)
    attend(shape, *map(pointer, (q, k, v, temperatures, add, out, scratch)))
    return out


def _fits(temperatures: Tensor, heads: int) -> bool:
    is_vector = temperatures.shape == (heads,) and temperatures.is_contiguous()
    return is_vector and temperatures.dtype == torch.float32 and temperatures.device.type == "cpu"
