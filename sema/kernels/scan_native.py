"""The selective scan as one C++ kernel, for CPUs; the equation is that of ``sema.layers.selective_scan``.

Legend: G directions, B batch, P Q the two sides of the grid, D channels, N states per channel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sema.kernels.library import NATIVE_DTYPES, load_library, long_array, pointer
from sema.kernels.operators import operator
from sema.layers.selective_scan import check_shapes, complete, selective_scan
from sema.layers.state_space import step_sizes

MAX_STATES = 64  # kMostStates of selective_scan.cpp


@operator(
    "softplus_scan_native(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? bias) -> Tensor",
    fake=lambda u, delta, a, b, c, bias: torch.empty_like(
        delta, dtype=torch.float32, memory_format=torch.contiguous_format
    ),
)
def _run(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None) -> Tensor:
    u, delta, b, c = (x if x.stride(-1) == 1 else x.contiguous() for x in (u, delta, b, c))
    a, bias = a.contiguous(), None if bias is None else bias.contiguous()
    y = torch.empty_like(delta, dtype=torch.float32, memory_format=torch.contiguous_format)
    strides = (step for x in (u, delta, b, c, y) for step in x.stride()[:4])
    shape = long_array(*delta.shape, a.shape[-1], torch.get_num_threads(), *strides)
    library = load_library("selective_scan")
    is_float = delta.dtype == torch.float32
    scan = library.sema_selective_scan_float32 if is_float else library.sema_selective_scan_bfloat16
    scan(shape, *map(pointer, (u, delta, bias, a, b, c, y)))
    return y


@torch.library.custom_op(
    "sema::selective_scan_native",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) -> Tensor",
)
def _scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return _run(u, delta, a, b, c, None)


complete(_scan)


def selective_scan_native(
    u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, *, bias: Tensor | None = None
) -> Tensor:
    """Scan like ``sema.layers.selective_scan.selective_scan``, with the float32 kernel; the gradient is PyTorch's.

    With ``bias`` (G, D), the step sizes are softplus(delta + bias); without a gradient, the kernel computes them.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: the shapes do not fit, the tensors are not on a CPU, or there are more than 64 states.
    """
    check_shapes(u, delta, a, b, c)
    if delta.device.type not in ("cpu", "meta"):
        raise ValueError(f"scan='native' runs on CPUs; got tensors on {delta.device.type}: use scan='torch' there")
    if a.shape[-1] > MAX_STATES and delta.dtype != torch.float64:
        raise ValueError(f"scan='native' holds at most {MAX_STATES} states of a channel; got {a.shape[-1]}")
    if bias is not None:
        if bias.shape != (delta.shape[0], delta.shape[4]):
            raise ValueError(f"bias must be {(delta.shape[0], delta.shape[4])}; got {tuple(bias.shape)}")
        has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (u, delta, a, b, c, bias))
        if delta.dtype != torch.float64 and not has_gradient:
            delta = delta if delta.dtype in NATIVE_DTYPES else delta.float()
            return _run(u.float(), delta, *(x.float() for x in (a, b, c, bias)))
        delta = step_sizes(delta, bias)
    if delta.dtype == torch.float64:
        return selective_scan(u, delta, a, b, c)
    return torch.ops.sema.selective_scan_native(*(x.float() for x in (u, delta, a, b, c)))
