"""Window attention of SEMA and Swin as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, h heads, w window size.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from sema.kernels.activation import ACTIVATIONS, Gate
from sema.kernels.library import NATIVE_DTYPES, all_even_strides, load_library, long_array, pointer
from sema.kernels.operators import operator
from sema.kernels.pairs import attention_of


class SwinTerms(NamedTuple):
    """Bias of the scores, and shift of the windows.

    ``bias`` is (h, w², w²), float32, contiguous; smaller windows use a part of it. Windows are cut from the map rolled
    by −``shift``, 0 ≤ shift < H, W; tokens that only the roll brings together do not attend to each other.
    """

    bias: Tensor | None = None
    shift: int = 0


def attend_in_windows_native(
    qk: Tensor, v: Tensor, *, onto: Tensor, num_heads: int, window_size: int, plus: Tensor | None = None,
    gate: Gate | None = None, swin: SwinTerms | None = None,
) -> None:  # fmt: skip
    """Overwrite ``onto`` with (onto + softmax(q kᵀ + bias) v inside each window + plus) · gate.

    All maps may be some of the channels, or some of the rows, of contiguous ones.

    Args:
        qk: queries, already scaled, and keys (B, H, W, 2C).
        v: values (B, H, W, C).
        onto: (B, H, W, C).
        num_heads, window_size: h and w; the windows at the right and bottom edges may be smaller.
        plus: (B, 1, 1, C), contiguous: added to every token.
        gate: None for no factors.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes, strides or dtypes.
    """
    bias, shift = swin or SwinTerms()
    factors, act = gate or (None, "none")
    _attend(qk, v, onto, plus, factors, bias, [num_heads, window_size, shift], act)


@operator(
    "attend_in_windows(Tensor qk, Tensor v, Tensor(a!) onto, Tensor? plus, Tensor? gate, Tensor? bias, "
    "int[] sizes, str act) -> ()",
    fake=lambda *arguments: None,
)
def _attend(
    qk: Tensor, v: Tensor, onto: Tensor, plus: Tensor | None, gate: Tensor | None, bias: Tensor | None,
    sizes: list[int], act: str,
) -> None:  # fmt: skip
    num_heads, window_size, shift = sizes
    maps = (v, onto) if gate is None else (v, onto, gate)
    strides = all_even_strides(qk, *maps)
    channels = v.shape[-1]
    fits = (
        bool(strides)
        and qk.shape == (*v.shape[:3], 2 * channels)
        and all(x.shape == v.shape for x in maps)
        and (plus is None or (plus.numel() == len(v) * channels and plus.is_contiguous()))
        and window_size > 0
        and num_heads > 0
        and channels % num_heads == 0
        and (bias is None or (bias.shape == (num_heads, window_size**2, window_size**2) and bias.is_contiguous()))
        and (bias is None or (bias.dtype == torch.float32 and bias.device.type == "cpu"))
        and 0 <= shift < min(v.shape[1:3])
        and act in ACTIVATIONS
        and v.dtype in NATIVE_DTYPES
        and all(x.dtype == v.dtype and x.device.type == "cpu" for x in (qk, *maps, plus) if x is not None)
    )
    if not fits:
        raise ValueError("native window attention takes maps of one dtype, float32 or bfloat16, on a CPU")
    images, height, width, _ = v.shape
    library = load_library("window_attention")
    library.sema_scratch_floats.restype = ctypes.c_long
    shape = long_array(
        images, height, width, num_heads, channels // num_heads, window_size, shift, list(ACTIVATIONS).index(act),
        torch.get_num_threads(), *itertools.chain(*strides, (0, 0) if gate is None else ()),
    )  # fmt: skip
    scratch = torch.empty(library.sema_scratch_floats(shape), dtype=torch.float32, device="cpu")
    attend = attention_of(library, "sema_attend", v.dtype, depth=channels // num_heads)
    attend(shape, *map(pointer, (qk, v, bias, plus, gate, onto, scratch)))
