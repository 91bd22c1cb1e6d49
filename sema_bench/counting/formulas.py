"""FLOPs of operators from their arguments: products, elementwise work and Fourier transforms.

Complex numbers count as real ones. In a matrix product or a convolution, a product of two complex numbers is four
multiply-accumulates, and one of a complex and a real number is two. Elementwise, a complex number is two elements, and
a product of two takes six FLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from sema_bench.counting.operators import ELEMENTWISE, FOURIER, NORMALISATION, attention_macs

#: Products and quotients of two elements: six FLOPs where both are complex.
_PRODUCTS = frozenset({"mul", "div"})


def elementwise_flops(name: str, arguments: Sequence[Any], result: Any) -> tuple[int, int]:
    """Count the (normalisation, elementwise) FLOPs of one call of an operator."""
    if name in FOURIER:
        return 0, _fourier_flops(arguments[0], arguments[1], result)
    tensors = [leaf for leaf in tree_leaves((arguments, result)) if isinstance(leaf, Tensor)]
    numbers = max((t.numel() * (2 if t.is_complex() else 1) for t in tensors), default=0)
    if name in _PRODUCTS and all(map(_is_complex, arguments[:2])):
        numbers *= 3
    if name in NORMALISATION:
        return NORMALISATION[name] * numbers, 0
    return 0, numbers if name in ELEMENTWISE else 0


def _fourier_flops(signal: Tensor, dims: Sequence[int], spectrum: Tensor) -> int:
    real = next((t for t in (signal, spectrum) if not t.is_complex()), None)
    whole = signal if real is None else real  # the complex side of a real transform holds half of the frequencies
    length = math.prod(whole.shape[dim] for dim in dims)
    return round((5 if real is None else 2.5) * whole.numel() * math.log2(length))


def _is_complex(operand: object) -> bool:
    return operand.dtype.is_complex if isinstance(operand, Tensor) else isinstance(operand, complex)


def real_products(operands: Iterable[torch.dtype]) -> int:
    """Count the real products in one product of these operands: 4 for two complex ones, 2 for one."""
    complex_ones = sum(dtype.is_complex for dtype in operands)
    return 1 << min(2, complex_ones)  # a third is a bias, or the values of attention


def product_formulas() -> dict[Any, Callable[..., int]]:
    """Map every operator of torch that multiplies and accumulates to the formula of its FLOPs.

    The formulas are those of torch's FlopCounterMode, and ours for operators that it lacks in some builds. They take an
    operator's arguments and its result ``out_val``; a complex product counts as real ones.
    """
    theirs = {packet: formula for packet, formula in flop_registry.items() if str(packet).startswith("aten.")}
    known = ((_operator(name), shape_wrapper(formula)) for name, formula in _MISSING.items())
    ours = {packet: formula for packet, formula in known if packet is not None}
    return {packet: _of_complex_numbers(formula) for packet, formula in (theirs | ours).items()}


def _operator(name: str) -> Any:
    """Look up an operator; None if this build of torch lacks it, or its library is not loaded."""
    namespace, _, name = name.rpartition("::")
    return getattr(getattr(torch.ops, namespace or "aten"), name, None)


def _of_complex_numbers(formula: Callable[..., int]) -> Callable[..., int]:
    def flops(*arguments: Any, out_val: Any = None, **options: Any) -> int:
        operands = (leaf.dtype for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor))
        return formula(*arguments, out_val=out_val, **options) * real_products(operands)

    flops.__dict__["_get_raw"] = True  # FlopCounterMode passes tensors instead of shapes
    return flops


def _matrix_vector(matrix: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _matrix_matrix(left: list[int], right: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _added(formula: Callable[..., int]) -> Callable[..., int]:
    """Skip the first operand, which is added to the product of the others."""
    return lambda bias, *operands, **options: formula(*operands, **options)


def _distances(left: list[int], right: list[int], *_: Any, **__: Any) -> int:
    """Count |x − y|² of all pairs as one product with two extra columns, which hold |x|² and |y|²."""
    return 2 * math.prod(left[:-1]) * right[-2] * (left[-1] + 2)


def _time_convolution(x: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return 2 * math.prod(out_shape[:2]) * math.prod(weight)  # maps are (T, B, C), filters (k, C in, C out)


def _deformable_convolution(x: list[int], weight: list[int], *_: Any, out_shape: list[int], **__: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _trilinear(*arguments: list[int], **_: Any) -> int:
    """Count the product of the first two of three operands, then the product of that with the third."""
    size: dict[int, int] = {}
    dims: list[set[int]] = []
    summed = arguments[6]
    for shape, expand in zip(arguments[:3], arguments[3:6], strict=True):
        own = [dim for dim in range(len(shape) + len(expand)) if dim not in expand]
        size |= zip(own, shape, strict=True)
        dims.append(set(own))
    one = dims[0] | dims[1]
    both = one - (set(summed) - dims[2]) | dims[2]
    return 2 * sum(math.prod(size[dim] for dim in product) for product in (one, both))


_MISSING: dict[str, Callable[..., int]] = {
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_fused_attention_overrideable"),
        lambda query, key, value, *_, **__: 2 * attention_macs(query, key, value),
    ),
    "mv": _matrix_vector,
    "dot": _matrix_vector,
    "vdot": _matrix_vector,
    "addmv": _added(_matrix_vector),
    "addbmm": _added(_matrix_matrix),
    "_addmm_activation": _added(_matrix_matrix),
    "_int_mm": _matrix_matrix,
    "_euclidean_dist": _distances,
    "_trilinear": _trilinear,
    "conv_tbc": _time_convolution,
    "torchvision::deform_conv2d": _deformable_convolution,
}
