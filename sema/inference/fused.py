"""Linear maps and convolutions, fused with the activation and the residual that follow them.

On a CPU, weights are packed once for the kernels of oneDNN or MKL. Those of oneDNN compute activation and residual,
too, while a result is still in cache. PyTorch's own compiler uses these operators when it freezes a model; they exist
in every release from 2.6 on. Depthwise convolutions have their own C++ kernel. Elsewhere plain operators compute the
same.

A part computes in the dtype of its weights and returns that of its input, unless ``returns`` names another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sema.kernels.activation import activate
from sema.kernels.depthwise_conv import depthwise_conv_native
from sema.kernels.operators import is_traced, operator

#: How a part is computed; with ``activation apart``, the activation is not in oneDNN's epilogue. With ``float32``, a
#: part in half precision has its weights in float32 and multiplies in it; MKL and C++ always do.
Kernel = Literal["torch", "oneDNN", "oneDNN, activation apart", "oneDNN, float32", "MKL", "C++"]

#: Activation → attribute, scalars and algorithm of oneDNN's epilogue.
_EPILOGUES: dict[str, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),
    "silu": ("swish", [], ""),
}


def lacks_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """True if oneDNN has kernels for ``device``, but none for this kind of half precision."""
    if not has_packed_kernels(device, torch.float32):
        return False
    if dtype == torch.float16:
        return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.bfloat16 and not has_packed_kernels(device, dtype)


def has_packed_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """True if oneDNN's packed kernels run on ``device`` in ``dtype``."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def has_mkl() -> bool:
    """True if MKL has products with packed weights, which are in float32."""
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


def cast_for(
    kernel: Kernel, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Convert weight and bias to ``dtype``, or to float32 if ``kernel`` needs that."""
    if kernel in ("oneDNN, float32", "MKL", "C++"):
        dtype = torch.float32
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _sum(out: Tensor, add: Tensor | None) -> Tensor:
    return out if add is None else out.add_(add)


@operator(
    "packed_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? add, str act, int outputs) -> Tensor",
    fake=lambda x, weight, bias, add, act, outputs: x.new_empty(*x.shape[:-1], outputs),
)
def _packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, act: str, outputs: int
) -> Tensor:
    if add is None or act != "none":
        return _sum(torch.ops.mkldnn._linear_pointwise(x, weight, bias, *_EPILOGUES[act]), add)
    return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")


def _conv_shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, act: str, shape: list[int], geometry: list[int]
) -> Tensor:
    outputs, *kernel = shape
    pads, steps, gaps = geometry[:2], geometry[2:4], geometry[4:6]
    sides = (
        (side + 2 * pad - gap * (wide - 1) - 1) // step + 1
        for side, wide, pad, step, gap in zip(x.shape[2:], kernel, pads, steps, gaps, strict=True)
    )
    return x.new_empty(x.shape[0], outputs, *sides).to(memory_format=torch.channels_last)


@operator(
    "packed_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? add, str act, int[] shape, int[] geometry) -> Tensor",
    fake=_conv_shape,
)
def _packed_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, act: str, shape: list[int], geometry: list[int]
) -> Tensor:
    """Convolve; ``geometry`` is padding, stride and dilation (two each), and groups; ``shape`` outputs and kernel."""
    how = (geometry[:2], geometry[2:4], geometry[4:6], geometry[6])
    if add is None or act != "none":
        return _sum(torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *how, *_EPILOGUES[act]), add)
    return torch.ops.mkldnn._convolution_pointwise.binary(x, add, weight, bias, *how, "add", 1.0, None, [], None)


def is_product(conv: nn.Conv2d) -> bool:
    """Check whether ``conv`` is one product at each pixel."""
    sides = (conv.kernel_size, conv.stride, conv.dilation)
    return all(side == (1, 1) for side in sides) and conv.groups == 1 and padding_sides(conv) == (0, 0)


def can_fuse(conv: nn.Conv2d) -> bool:
    """Check whether ``FusedConv2d`` supports ``conv``: zeros around the image, as many on opposite sides."""
    return conv.padding_mode == "zeros" and (conv.padding != "same" or all(size % 2 for size in conv.kernel_size))


def padding_sides(conv: nn.Conv2d) -> tuple[int, ...]:
    """Return how many zeros are added at the top and bottom, and at the left and right."""
    if conv.padding == "same":
        return tuple(gap * (size // 2) for gap, size in zip(conv.dilation, conv.kernel_size, strict=True))
    return (0, 0) if isinstance(conv.padding, str) else tuple(conv.padding)


def _maps(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1)


def _images(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def _num_weights(weight: Tensor, bias: Tensor | None) -> int:
    return weight.numel() + (0 if bias is None else bias.numel())


class FusedLinear(nn.Module):
    """act(x Wᵀ + b) + add: (…, in) → (…, out).

    Args:
        weight, bias: (out, in) and (out,); without gradients; in the dtype that ``cast_for`` gives.
        act: ``none``, ``relu``, ``relu6``, ``gelu`` or ``silu``.
        kernel: all but C++.
        rows: the usual number of rows; packing may depend on it. MKL's weights are packed for it alone.

    Attributes:
        dtype: of the weights; the product is computed in it.
        returns: dtype of the result; None: that of the input.
        num_spare_weights: size of a second set of weights, for other numbers of rows than those packed for MKL.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, act: str = "none", kernel: Kernel = "torch",
        rows: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.act = act
        self.kernel = kernel
        self.dtype = weight.dtype
        self.returns: torch.dtype | None = None
        self.num_weights = _num_weights(weight, bias)
        self.out_features, self.in_features = weight.shape
        self.num_spare_weights = weight.numel() if kernel == "MKL" else 0
        self._rows = rows
        self._packed: Tensor | None = None
        if kernel == "MKL":
            assert rows is not None
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(weight.contiguous(), rows)
        if kernel.startswith("oneDNN"):
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        elif weight.device.type == "cpu":  # MKL's products are faster with rows of inputs
            self._weight = weight.t().contiguous().t()
        else:
            self._weight = weight.contiguous()
        self._bias = None if bias is None else bias.contiguous()

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        out = self._map(x.to(self.dtype), None if add is None else add.to(self.dtype))
        return out.to(self.returns or x.dtype)

    def _map(self, x: Tensor, add: Tensor | None) -> Tensor:
        if self.kernel in ("oneDNN", "oneDNN, float32"):
            return _packed_linear(x, self._weight, self._bias, add, self.act, self.out_features)
        if self.kernel == "oneDNN, activation apart":
            out = _packed_linear(x, self._weight, self._bias, None, "none", self.out_features)
        elif self._packed is None or is_traced(x) or x.shape[:-1].numel() != self._rows:  # compilers pack by themselves
            out = F.linear(x, self._weight, self._bias)
        else:
            out = torch.ops.mkl._mkl_linear(x, self._packed, self._weight, self._bias, self._rows)
        return _sum(activate(out, self.act), add)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, act={self.act}, kernel={self.kernel!r}"


class FusedConv2d(nn.Module):
    """act(conv(x)) + add, on (B, C, H, W) in channels-last memory.

    Args:
        geometry: gives channels, padding, stride, dilation and groups; its own weights are not used.
        weight, bias: of the convolution, in the dtype that ``cast_for`` gives.
        act: see ``FusedLinear``.
        kernel: C++ must support ``geometry``; MKL is for products only.
        size: the usual (B, C, H, W) of the input. oneDNN's weights are packed for it alone. Other sizes unpack them at
            each call and run torch's convolution, because weights packed for another size made some a hundred times
            slower.
        maps: take and return maps (B, H, W, C) instead.
    """

    def __init__(
        self,
        geometry: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        *,
        act: str = "none",
        kernel: Kernel = "torch",
        size: Sequence[int] | None = None,
        maps: bool = False,
    ) -> None:
        super().__init__()
        self.act = act
        self.kernel = kernel
        self.maps = maps
        self.dtype = weight.dtype
        self.num_weights = 0 if is_product(geometry) else _num_weights(weight, bias)
        self.in_channels, self.out_channels = geometry.in_channels, geometry.out_channels
        self.groups = geometry.groups
        self._geometry: tuple[Any, ...] = (
            list(padding_sides(geometry)), list(geometry.stride), list(geometry.dilation), self.groups
        )  # fmt: skip
        self._bias = None if bias is None else bias.contiguous()
        self.kernel_size = geometry.kernel_size
        self._product: FusedLinear | None = None
        self._size: torch.Size | None = None
        if is_product(geometry):
            rows = None if size is None else size[0] * size[2] * size[3]
            self._product = FusedLinear(weight.flatten(1), self._bias, act=act, kernel=kernel, rows=rows)
        elif kernel == "C++":
            self._weight = weight[:, 0].permute(1, 2, 0).contiguous()
            self._bias = weight.new_zeros(len(weight)) if bias is None else bias
        elif kernel == "torch":
            self._weight = weight.contiguous(memory_format=torch.channels_last)
        else:
            assert size is not None
            assert kernel != "MKL"
            self._size = torch.Size(size)
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._weight = reorder(weight.contiguous(), *self._geometry, self._size)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        on_maps = self.kernel == "C++" or self._product is not None
        if on_maps == self.maps:
            return self._convolve_maps(x, add) if on_maps else self._convolve_images(x, add)
        if on_maps:
            return _images(self._convolve_maps(_maps(x), None if add is None else _maps(add)))
        return _maps(self._convolve_images(_images(x), None if add is None else _images(add)))

    def _convolve_maps(self, x: Tensor, add: Tensor | None) -> Tensor:
        if self._product is not None:
            return self._product(x, add)
        assert self._bias is not None
        return depthwise_conv_native(x, self._weight, self._bias, add, self.act)

    def _convolve_images(self, x: Tensor, add: Tensor | None) -> Tensor:
        if x.dtype != self.dtype:
            add = None if add is None else add.to(self.dtype)
            return self._convolve_images(x.to(self.dtype), add).to(x.dtype)
        padding, stride, dilation, groups = self._geometry
        if x.shape != self._size:
            weight = self._weight if self._size is None else self._weight.to_dense()
            out = F.conv2d(x, weight, self._bias, stride, padding, dilation, groups)
            return _sum(activate(out, self.act), add)
        shape = [self.out_channels, *self.kernel_size]
        geometry = [*padding, *stride, *dilation, groups]
        if self.kernel == "oneDNN, activation apart":
            out = _packed_conv(x, self._weight, self._bias, None, "none", shape, geometry)
            return _sum(activate(out, self.act), add)
        return _packed_conv(x, self._weight, self._bias, add, self.act, shape, geometry)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, act={self.act}, kernel={self.kernel!r}"
