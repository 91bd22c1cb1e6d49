"""The selective scan as one C++ kernel, for CPUs; the equation is that of ``sema.layers.selective_scan``.

Legend: G directions, B batch, P Q the two sides of the grid, D channels, N states per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sema.kernels.library import load_library, long_array, pointer
from sema.layers.selective_scan import check_shapes, complete, selective_scan

MAX_STATES = 64  # kMostStates of selective_scan.cpp


@torch.library.custom_op(
    "sema::selective_scan_native",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) -> Tensor",
)
def _scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    u, delta, b, c = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, delta, b, c))
    a = a.contiguous()
    y = torch.empty_like(delta, memory_format=torch.contiguous_format)
    strides = (step for x in (u, delta, b, c, y) for step in x.stride()[:4])
    shape = long_array(*delta.shape, a.shape[-1], torch.get_num_threads(), *strides)
    load_library("selective_scan").sema_selective_scan(shape, *map(pointer, (u, delta, a, b, c, y)))
    return y


complete(_scan)


def selective_scan_native(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan like ``sema.layers.selective_scan.selective_scan``, with the float32 kernel; the gradient is PyTorch's.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: the shapes do not fit, the tensors are not on a CPU, or there are more than 64 states.
    """
    check_shapes(u, delta, a, b, c)
    if delta.device.type not in ("cpu", "meta"):
        raise ValueError(f"scan='native' runs on CPUs; got tensors on {delta.device.type}: use scan='torch' there")
    if delta.dtype == torch.float64:
        return selective_scan(u, delta, a, b, c)
    if a.shape[-1] > MAX_STATES:
        raise ValueError(f"scan='native' holds at most {MAX_STATES} states of a channel; got {a.shape[-1]}")
    return torch.ops.sema.selective_scan_native(*(x.float() for x in (u, delta, a, b, c)))
