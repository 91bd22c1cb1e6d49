"""Depthwise convolution with bias, activation and residual as one C++ kernel, for inference on a CPU.

Legend: B batch, H W token grid, C channels, K kernel size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sema.kernels.activation import ACTIVATIONS
from sema.kernels.library import NATIVE_DTYPES, REGISTER_CHANNELS, even_strides, load_library, long_array, pointer
from sema.kernels.operators import operator

_SIZES = (3, 5, 7)


def is_served(conv: nn.Conv2d) -> bool:
    """Check whether the kernel supports ``conv``: depthwise, 3×3 to 7×7, same size, C a multiple of 16."""
    size = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and conv.in_channels % REGISTER_CHANNELS == 0
        and size in _SIZES
        and conv.kernel_size == (size, size)
        and conv.padding in ((size // 2, size // 2), "same")
        and conv.padding_mode == "zeros"
        and conv.stride == conv.dilation == (1, 1)
    )


@operator(
    "depthwise_conv(Tensor x, Tensor weight, Tensor bias, Tensor? add, str act) -> Tensor",
    fake=lambda x, weight, bias, add, act: x.new_empty(x.shape),
)
def depthwise_conv_native(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, act: str) -> Tensor:
    """Compute act(weight ∗ x + bias) + add, with zeros outside the map.

    Args:
        x: maps (B, H, W, C); float32 or bfloat16. They may be some of the channels of contiguous maps.
        weight: (K, K, C), or (B, K, K, C) for each image, and ``bias`` (C,): float32, contiguous.
        add: like ``x``.
        act: ``none``, ``relu``, ``relu6``, ``gelu`` or ``silu``.

    Raises:
        NativeUnavailableError: the kernel cannot be built here.
        ValueError: other shapes or dtypes.
    """
    strides = even_strides(x) if x.ndim == 4 else None
    if strides is None:
        x = x.contiguous()
        strides = (x[:1].numel(), x.shape[-1])
    add = None if add is None else add.contiguous()
    size, channels = weight.shape[-2], x.shape[-1]
    fits = (
        x.ndim == 4
        and act in ACTIVATIONS
        and weight.shape in ((size, size, channels), (len(x), size, size, channels))
        and bias.shape == (channels,)
        and weight.dtype == bias.dtype == torch.float32
        and weight.is_contiguous()
        and bias.is_contiguous()
        and size in _SIZES
        and channels % REGISTER_CHANNELS == 0
        and x.dtype in NATIVE_DTYPES
        and (add is None or (add.shape == x.shape and add.dtype == x.dtype and add.device == x.device))
        and x.device.type == weight.device.type == bias.device.type == "cpu"
    )
    if not fits:
        raise ValueError("native depthwise convolution takes maps of float32 or bfloat16 on a CPU, C a multiple of 16")
    library = load_library("depthwise_conv")
    convolve = library.sema_depthwise_float32 if x.dtype == torch.float32 else library.sema_depthwise_bfloat16
    out = x.new_empty(x.shape)
    shape = long_array(
        *x.shape, size, list(ACTIVATIONS).index(act), torch.get_num_threads(), *strides,
        weight[0].numel() if weight.ndim == 4 else 0,
    )  # fmt: skip
    convolve(shape, pointer(x), pointer(weight), pointer(bias), pointer(add), pointer(out))
    return out
