"""Window attention, of SEMA and of Swin, as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, h heads, w window size.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sema.kernels.library import load_library

_DTYPES = {torch.float32: "sema_attend_float32", torch.bfloat16: "sema_attend_bfloat16"}


class _Shape(ctypes.Structure):
    """The struct ``Shape`` of window_attention.cpp."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in ("images", "height", "width", "heads", "depth", "size", "image_stride", "shift", "threads")
    ]


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_library("window_attention")
    library.sema_scratch_floats.restype = ctypes.c_long
    return library


class SwinTerms(NamedTuple):
    """The two terms of Swin's windows.

    Attributes:
        bias: (h, w², w²), float32, contiguous: of the offsets in a whole window; smaller windows use a part of it.
        shift: windows are cut from the map rolled by −shift, and tokens that only the roll brings together do not
            attend to each other; 0 ≤ shift < H, W.
    """

    bias: Tensor | None = None
    shift: int = 0


_NO_TERMS = SwinTerms()


def attend_in_windows_native(
    qk: Tensor, v: Tensor, *, onto: Tensor, num_heads: int, window_size: int, plus: Tensor | None = None,
    times: Tensor | None = None, swin: SwinTerms = _NO_TERMS,
) -> None:  # fmt: skip
    """Write (onto + softmax(q kᵀ + bias) v inside each window + plus) · times over ``onto``.

    Args:
        qk: queries, which carry the scale of the scores, and keys (B, H, W, 2C), contiguous.
        v: values (B, H, W, C); each image contiguous.
        onto: (B, H, W, C), with the strides of ``v``.
        num_heads: h.
        window_size: w; the windows at the right and at the bottom may be smaller.
        plus: (B, 1, 1, C), contiguous: added to every token.
        times: (B, H, W, C) with the strides of ``v``: the gate.
        swin: bias of the scores, and shift of the windows.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: shapes, strides or dtypes are not of this form.
    """
    images, height, width, channels = v.shape
    bias, shift = swin
    maps = [x for x in (v, onto, times) if x is not None]
    image = height * width * channels
    fits = (
        qk.shape == (images, height, width, 2 * channels)
        and qk.is_contiguous()
        and all(x.shape == v.shape and x.stride() == v.stride() for x in maps)
        and (v.is_contiguous() or v[0].is_contiguous())
        and (plus is None or (plus.numel() == images * channels and plus.is_contiguous()))
        and channels % num_heads == 0
        and (bias is None or (bias.shape == (num_heads, window_size**2, window_size**2) and bias.is_contiguous()))
        and (bias is None or bias.dtype == torch.float32)
        and 0 <= shift < min(height, width)
        and v.dtype in _DTYPES
        and all(x.dtype == v.dtype and x.device.type == "cpu" for x in (qk, *maps, plus) if x is not None)
    )
    if not fits:
        raise ValueError("native window attention takes contiguous maps of one dtype, float32 or bfloat16, on a CPU")
    library = _library()
    shape = _Shape(
        images, height, width, num_heads, channels // num_heads, window_size,
        v.stride(0) if images > 1 else image, shift, torch.get_num_threads(),
    )  # fmt: skip
    scratch = torch.empty(library.sema_scratch_floats(ctypes.byref(shape)), dtype=torch.float32, device="cpu")
    pointers = [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in (qk, v, bias, plus, times, onto, scratch)]
    getattr(library, _DTYPES[v.dtype])(ctypes.byref(shape), *pointers)
