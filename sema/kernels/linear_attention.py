"""Linear attention, MILA's and the focused one as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, h heads, d = C / h.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from typing import Literal, get_args

import torch
from torch import Tensor

from sema.kernels.activation import ACTIVATIONS, Gate
from sema.kernels.library import (
    NATIVE_DTYPES,
    REGISTER_CHANNELS,
    all_even_strides,
    load_library,
    long_array,
    pointer,
)
from sema.kernels.operators import operator
from sema.layers.positions import rope_angles

#: d must be a multiple of this: both parts of channel pairs fill registers.
HEAD_CHANNELS = 2 * REGISTER_CHANNELS
#: φ(x) = ELU(x) + 1, the same rotated by positions, or given in the place of queries and keys.
Features = Literal["elu", "rotated", "given"]


def attend_linearly_native(
    qk: Tensor, v: Tensor, *, onto: Tensor, num_heads: int, features: Features = "elu", gate: Gate | None = None
) -> None:
    """Overwrite ``onto`` with (onto + linear attention) · gate.

    All maps may be some of the channels of contiguous ones.

    Args:
        qk: queries and keys (B, H, W, 2C).
        v: values (B, H, W, C).
        onto: (B, H, W, C).
        num_heads: h; even if features are rotated.
        features: what is made of ``qk``. If φ(q) and φ(k) are rotated by their positions like MILA's, the channels of a
            head in ``qk`` are in another order: first the even ones, the real parts of all pairs, then the odd ones.
        gate: None for no factors.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes, strides or dtypes.
    """
    factors, act = gate or (None, "none")
    _attend(qk, v, onto, factors, num_heads, features, act)


@operator(
    "attend_linearly(Tensor qk, Tensor v, Tensor(a!) onto, Tensor? gate, int heads, str features, str act) -> ()",
    fake=lambda *arguments: None,
)
def _attend(qk: Tensor, v: Tensor, onto: Tensor, gate: Tensor | None, heads: int, features: str, act: str) -> None:
    rotated = features == "rotated"
    maps = (v, onto) if gate is None else (v, onto, gate)
    strides = all_even_strides(qk, *maps)
    channels = v.shape[-1]
    fits = (
        bool(strides)
        and qk.shape == (*v.shape[:3], 2 * channels)
        and all(x.shape == v.shape for x in maps)
        and heads > 0
        and channels % (heads * HEAD_CHANNELS) == 0
        and features in get_args(Features)
        and not (rotated and heads % 2)
        and act in ACTIVATIONS
        and v.dtype in NATIVE_DTYPES
        and all(x.dtype == v.dtype and x.device.type == "cpu" for x in (qk, *maps))
    )
    if not fits:
        raise ValueError("native linear attention takes maps of one dtype, float32 or bfloat16, on a CPU")
    images, height, width, _ = v.shape
    library = load_library("linear_attention")
    library.sema_linear_scratch_floats.restype = ctypes.c_long
    positions = max(height, width) if rotated else 0
    shape = long_array(
        images, height, width, heads, channels // heads, features == "given", positions, list(ACTIVATIONS).index(act),
        torch.get_num_threads(), *itertools.chain(*strides, (0, 0) if gate is None else ()),
    )  # fmt: skip
    table = _rotations(positions, channels) if rotated else None
    scratch = torch.empty(library.sema_linear_scratch_floats(shape), dtype=torch.float32, device="cpu")
    attend = library.sema_linear_float32 if v.dtype == torch.float32 else library.sema_linear_bfloat16
    attend(shape, *map(pointer, (qk, v, table, gate, onto, scratch)))


@functools.lru_cache(maxsize=16)
def _rotations(positions: int, channels: int) -> Tensor:
    """Compute cosines and sines, (2, positions, C/4), of rows and columns alike."""
    with torch.inference_mode(False):
        angles = rope_angles(positions, channels, device=torch.device("cpu"), dtype=torch.float64)
        return torch.stack((angles.cos(), angles.sin())).float()
