"""Build the parts of inference forms: linear maps and convolutions for one device and dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sema.inference.choices import fastest_convolution, fastest_product, fastest_softmax, packed_kernels
from sema.inference.fused import (
    FusedConv2d,
    FusedLinear,
    Kernel,
    cast_for,
    has_packed_kernels,
    is_product,
    lacks_kernels,
)
from sema.kernels.depthwise_conv import is_served
from sema.kernels.library import NATIVE_DTYPES, NativeUnavailableError, load_library
from sema.layers.conv import DepthwiseConv2d, MapConv2d


@dataclass(frozen=True)
class FormBuilder:
    """Builds fused parts; constants are folded in float64.

    Attributes:
        device: of the weights.
        dtype: of all that parts take and return.
        shapes: the usual input shape of each linear map and convolution.
        timed: if the shape is known, choose the kernel of each part by timing on this machine.
        kernels: name of a kernel → its implementation; filled while forms are built.
    """

    device: torch.device
    dtype: torch.dtype
    shapes: Mapping[nn.Module, torch.Size] = field(default_factory=dict)
    timed: bool = False
    kernels: dict[str, str] = field(default_factory=dict)

    @property
    def packed(self) -> bool:
        """True if weights are packed for oneDNN."""
        return has_packed_kernels(self.device, self.weight_dtype)

    @property
    def weight_dtype(self) -> torch.dtype:
        """The dtype of products and convolutions: float32 on a CPU that has no kernels for this half precision.

        On one with AVX2, torch's products in bfloat16 took ten times as long as in float32. Kernels chosen by timing
        may have weights in float32 on other CPUs, too.
        """
        return torch.float32 if lacks_kernels(self.device, self.dtype) else self.dtype

    def has_native(self, name: str, *, dtype: torch.dtype | None = None) -> bool:
        """Check whether the kernel ``sema/kernels/<name>.cpp`` runs here in ``dtype``; build it if necessary."""
        if self.device.type != "cpu" or (dtype or self.dtype) not in NATIVE_DTYPES:
            return False
        if name not in self.kernels:
            try:
                load_library(name)
                self.kernels[name] = "C++"
            except NativeUnavailableError as problem:
                self.kernels[name] = f"torch ({problem})"
        return self.kernels[name] == "C++"

    def note_torch(self, name: str, reason: str) -> None:
        """Say in ``kernels`` why torch computes something for which there is a kernel in C++."""
        if self.device.type == "cpu" and self.dtype in NATIVE_DTYPES:
            self.kernels[f"{name}: {reason}"] = "torch"

    def takes_softmax_kernel(self, queries: torch.Size | None, keys: torch.Size | None, *, num_heads: int) -> bool:
        """Check whether softmax attention runs in C++: if it is faster for these shapes (B, N, C), or not timed."""
        name = "softmax_attention"
        is_new = name not in self.kernels
        if not self.has_native(name):
            return False
        if not self.timed or queries is None or keys is None:
            return True
        if fastest_softmax(queries, keys, num_heads=num_heads, dtype=self.dtype) == "C++":
            return True
        if is_new:
            del self.kernels[name]
        self.note_torch(name, f"torch is faster for {queries[1]} queries and {keys[1]} keys")
        return False

    def rows(self, module: nn.Linear) -> int | None:
        """Return the number of rows of the example's input."""
        shape = self.shapes.get(module)
        return None if shape is None else shape[:-1].numel()

    def linear(
        self,
        module: nn.Linear,
        *,
        act: str = "none",
        norm: nn.BatchNorm2d | None = None,
        scale: Tensor | float = 1.0,
        input_scale: float = 1.0,
        outputs: slice | Tensor = slice(None),
        rows: int | None = None,
    ) -> FusedLinear:
        """Build x ↦ act(norm(scale · (W (input_scale · x) + b))).

        Args:
            module: has W and b.
            act: see ``FusedLinear``.
            norm: a batch norm in eval mode.
            scale: one number, or one per output.
            input_scale: one number.
            outputs: the outputs to compute: a slice, or indices in another order.
            rows: the usual number of rows of one call; None: those of the example.
        """
        weight = module.weight.detach().double() * input_scale
        scale, bias = _folded(module, scale, norm)
        weight = (weight * scale[:, None])[outputs]
        bias = None if bias is None else bias[outputs]
        rows = self.rows(module) if rows is None else rows
        kernel = self._product_kernel(weight, bias, act=act, rows=rows)
        parts = cast_for(kernel, weight, bias, dtype=self.weight_dtype)
        return FusedLinear(*parts, act=act, kernel=kernel, rows=rows)

    def _product_kernel(self, weight: Tensor, bias: Tensor | None, *, act: str, rows: int | None) -> Kernel:
        """Choose the kernel of a product of ``rows`` rows."""
        if not self.packed:
            return "torch"
        if not self.timed or not rows:
            return "oneDNN"
        return fastest_product(weight, bias, act=act, rows=rows, dtype=self.weight_dtype)

    def conv(
        self,
        module: nn.Conv2d,
        *,
        act: str = "none",
        norm: nn.BatchNorm2d | None = None,
        scale: Tensor | float = 1.0,
        plus_input: bool = False,
        slices: int = 1,
    ) -> FusedConv2d:
        """Build x ↦ act(norm(scale · (W ∗ x + b))); on maps (B, H, W, C) if ``module`` works on them.

        Args:
            module: has W, b and the geometry.
            act, norm, scale: as for ``linear``.
            plus_input: add x itself to the convolution, which must be depthwise at stride 1.
            slices: number of equal slices of channels in the map that x is cut from.
        """
        weight = module.weight.detach().double()
        scale, bias = _folded(module, scale, norm)
        if plus_input:
            weight = weight.clone()
            weight[:, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] += 1.0
        weight = weight * scale.view(-1, 1, 1, 1)
        maps = isinstance(module, DepthwiseConv2d | MapConv2d)

        shape = self.shapes.get(module)
        size = None if shape is None or len(shape) != 4 else [shape[i] for i in ((0, 3, 1, 2) if maps else range(4))]

        def build(kernel: Kernel, size: Sequence[int] | None) -> FusedConv2d:
            parts = cast_for(kernel, weight, bias, dtype=self.weight_dtype)
            return FusedConv2d(module, *parts, act=act, kernel=kernel, size=size, maps=maps)

        if is_product(module):
            rows = None if size is None else size[0] * size[2] * size[3]
            return build(self._product_kernel(weight.flatten(1), bias, act=act, rows=rows), size)
        kernels = packed_kernels(act, self.weight_dtype) if self.packed and size else ("torch",)
        if is_served(module) and self.has_native("depthwise_conv"):
            kernels = ("C++", kernels[0])
        if not self.timed or not size or len(kernels) == 1:
            return build(kernels[0], size)
        name = f"convolution {module.extra_repr()} {act} of {'maps' if maps else 'images'}"
        kernel = fastest_convolution(kernels, build, name=name, size=size, dtype=self.dtype, slices=slices)
        return build(kernel, size)


def stacked(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Return one linear map with the outputs of two, which have biases."""
    both = nn.Linear(first.in_features, first.out_features + second.out_features, device="meta")
    for name in ("weight", "bias"):
        parts = [getattr(module, name).detach() for module in (first, second)]
        setattr(both, name, nn.Parameter(torch.cat(parts), requires_grad=False))
    return both


def _folded(
    module: nn.Linear | nn.Conv2d, scale: Tensor | float, norm: nn.BatchNorm2d | None
) -> tuple[Tensor, Tensor | None]:
    """Fold bias, scale and norm into a scale for each output and one bias (None for no bias), both in float64."""
    outputs = len(module.weight)
    scale = torch.as_tensor(scale, dtype=torch.float64, device=module.weight.device).expand(outputs)
    bias = module.weight.new_zeros(outputs) if module.bias is None else module.bias.detach()
    bias = bias.double() * scale
    if norm is not None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            factor = factor * norm.weight.detach().double()
        scale, bias = scale * factor, (bias - norm.running_mean.double()) * factor
        if norm.bias is not None:
            bias = bias + norm.bias.detach().double()
    return scale, bias if module.bias is not None or bool((bias != 0).any()) else None
