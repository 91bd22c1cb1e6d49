"""Features of focused linear attention as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, REGISTER_CHANNELS, even_strides, load_library, long_array, pointer
from sema.kernels.operators import operator


@operator(
    "focus(Tensor(a!) qk, Tensor positions, Tensor rates, int power) -> ()",
    fake=lambda *arguments: None,
)
def focus_native(qk: Tensor, positions: Tensor, rates: Tensor, power: int) -> None:
    """Overwrite queries and keys with their features φ, see ``sema.attention.focused``.

    Args:
        qk: queries and keys (B, H, W, 2C); float32 or bfloat16, perhaps some of the channels of contiguous maps.
        positions: (1, H, W, C): P, which is added to the keys. Like ``rates``, float32 and contiguous.
        rates: (C,): 1 / softplus(s).
        power: p.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes, strides or dtypes.
    """
    strides = even_strides(qk) if qk.ndim == 4 else None
    fits = (
        strides is not None
        and len(rates) % REGISTER_CHANNELS == 0
        and qk.shape[-1] == 2 * len(rates)
        and positions.shape == (1, *qk.shape[1:3], len(rates))
        and rates.ndim == 1
        and power > 0
        and qk.dtype in NATIVE_DTYPES
        and qk.device.type == "cpu"
        and all(x.dtype == torch.float32 and x.is_contiguous() and x.device.type == "cpu" for x in (positions, rates))
    )
    if not fits:
        raise ValueError("native focused features take maps of queries and keys in float32 or bfloat16 on a CPU")
    assert strides is not None
    images, height, width, _ = qk.shape
    library, threads = load_library("focused_features"), torch.get_num_threads()
    shape = long_array(images, height * width, len(rates), power, threads, *strides)
    scratch = torch.empty(threads * len(rates), dtype=torch.float32, device="cpu")
    focus = library.sema_focus_float32 if qk.dtype == torch.float32 else library.sema_focus_bfloat16
    focus(shape, *map(pointer, (qk, positions, rates, scratch)))
