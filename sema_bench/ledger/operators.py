"""Operators by what they cost: which ones multiply and accumulate, which compute otherwise, which only move data.

Names are those of torch's operators without overload. What stands in none of the tables and has no formula is
*uncovered*: a record names it, for a silent zero is a miscount.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

#: Statistics, scaling and shifting of every element: FLOPs per element. The mean, the variance (2), the scale and
#: the shift of a layer or group normalisation, one of each at inference of a batch normalisation; maximum,
#: difference, exponential, sum and division of a softmax.
NORMALISATION: dict[str, int] = {
    "_batch_norm_with_update": 5,
    "_cudnn_batch_norm_legit": 2,
    "_fused_rms_norm": 3,
    "_log_softmax": 5,
    "_native_batch_norm_legit": 2,
    "_native_batch_norm_legit_no_training": 2,
    "_safe_softmax": 5,
    "_softmax": 5,
    "batch_norm": 2,
    "cudnn_batch_norm": 2,
    "group_norm": 5,
    "instance_norm": 5,
    "layer_norm": 5,
    "linalg_vector_norm": 2,
    "log_softmax": 5,
    "native_batch_norm": 2,
    "native_group_norm": 5,
    "native_layer_norm": 5,
    "norm": 2,
    "normalize": 3,
    "rms_norm": 3,
    "softmax": 5,
}

#: Arithmetic on elements and reductions: one FLOP for each element of the largest operand.
ELEMENTWISE = frozenset(
    """
    _adaptive_avg_pool2d _upsample_bicubic2d_aa abs adaptive_avg_pool2d add add_ addcdiv addcmul addcmul_ amax amin any
    argmax argmin atan2 avg_pool2d bernoulli bernoulli_ bitwise_and bitwise_not bitwise_or ceil clamp clamp_
    clamp_max clamp_min cos cosh cummax cumprod cumsum div div_ dropout elu elu_ eq erf exp exp2 exp_ expm1
    feature_dropout floor floor_divide ge gelu gelu_ gt hardsigmoid hardswish hardswish_ hardtanh hardtanh_ le
    leaky_relu leaky_relu_ lerp log log1p log2 log_sigmoid_forward logical_and logical_not logical_or logsumexp lt
    masked_fill masked_fill_ max max_pool2d max_pool2d_with_indices maximum mean min minimum mish mul mul_ ne neg
    polar pow pow_ prelu prod reciprocal reciprocal_ relu relu6 relu_ remainder round rsqrt rsqrt_ rsub sigmoid
    sigmoid_ sign silu silu_ sin sinh softplus sqrt sqrt_ square std std_mean sub sub_ sum tan tanh tanh_ trunc
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d var var_mean where
    """.split()  # noqa: SIM905
)

#: Views, copies, fills, gathering and questions about shapes: no arithmetic at all.
MOVEMENT = frozenset(
    """
    _assert_async _fused_sdp_choice _local_scalar_dense _reshape_alias _reshape_copy _to_copy _unsafe_view alias arange
    as_strided broadcast_tensors cat chunk clone col2im complex constant_pad_nd contiguous copy copy_ detach device
    diagonal embedding empty empty_like empty_permuted empty_strided expand expand_as eye fill fill_ flatten flip full
    full_like gather getitem imag im2col index index_add index_copy index_put index_put_ index_select is_same_size item
    lift_fresh linspace masked_select meshgrid movedim narrow new_empty new_empty_strided new_full new_ones new_zeros
    nonzero numel numpy_T one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle rand rand_like randn
    randn_like real reflection_pad2d repeat repeat_interleave replication_pad2d reshape roll scalar_tensor scatter
    scatter_add select select_scatter size slice slice_scatter sort split split_with_sizes squeeze squeeze_ stack
    swapaxes sym_numel sym_size sym_storage_offset sym_stride t t_ take_along_dim tensor_split tile to topk transpose
    transpose_ tril triu type_as unbind unflatten unfold unsqueeze unsqueeze_ view view_as view_as_complex
    view_as_real vstack hstack zero_ zeros zeros_like is_contiguous layout prim_layout
    """.split()  # noqa: SIM905
)

#: Selective scans: elementwise work that is no small part of its model, and stands apart (``count_scan``).
SCANS = frozenset({"selective_scan", "selective_scan_native", "selective_scan_triton"})
#: FLOPs of a selective scan per token, channel and state, as its authors count them.
SCAN_FLOPS_PER_STATE = 9

CONVOLUTIONS = frozenset(
    """
    _convolution conv1d conv2d conv3d conv_transpose2d convolution convolution_overrideable cudnn_convolution
    mkldnn_convolution slow_conv2d_forward thnn_conv2d
    """.split()  # noqa: SIM905
)


#: Whose operators the tables are about: one of a user's may have any name.
_NAMESPACES = frozenset({"aten", "prim", "prims", "sema"})


def is_known(namespace: str, name: str) -> bool:
    """Tell whether the tables say what an operator without multiply-accumulates costs."""
    tables = (NORMALISATION, ELEMENTWISE, MOVEMENT, SCANS)
    return namespace in _NAMESPACES and any(name in table for table in tables)


def elementwise_flops(name: str, largest: int) -> tuple[int, int]:
    """Return (normalisation, elementwise) FLOPs of an operator; ``largest``: elements of its largest tensor."""
    if name in NORMALISATION:
        return NORMALISATION[name] * largest, 0
    return 0, largest if name in ELEMENTWISE else 0


def scan_flops(delta: Sequence[int], decay_rates: Sequence[int]) -> int:
    """Return the FLOPs of a selective scan from the shapes of two operands, skip terms and gates apart."""
    return SCAN_FLOPS_PER_STATE * math.prod(delta) * decay_rates[-1]


def attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Return the MACs of fused attention: Q (…, N, d) times Kᵀ, and the weights times V (…, M, e)."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Return the MACs of a contraction of at most two operands: the product of the sizes of all its letters.

    Raises:
        ValueError: more operands, whose count depends on the order of the contraction.
    """
    if len(shapes) > 2:
        raise ValueError(f"einsum of {len(shapes)} operands has no single count; write it as products of two")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        head, dots, tail = term.partition("...")
        batch = [f".{i}" for i in range(len(head) + len(tail) - len(shape), 0)] if dots else []
        for letter, size in zip([*head, *batch, *tail], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))  # a batch dimension of one is broadcast
    return math.prod(sizes.values()) if len(shapes) == 2 else 0


def missing_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that torch's FlopCounterMode passes over, in all builds of torch or in some."""
    import torch

    def attention(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
        return 2 * attention_macs(query, key, value)

    def matrix_vector(matrix: list[int], vector: list[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(matrix)

    def add_matrix_vector(bias: list[int], matrix: list[int], vector: list[int], *_: Any, **__: Any) -> int:
        return matrix_vector(matrix, vector)

    def add_batched(bias: list[int], left: list[int], right: list[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(left) * right[-1]

    formulas: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "_scaled_dot_product_fused_attention_overrideable": attention,
        "mv": matrix_vector,
        "dot": matrix_vector,
        "addmv": add_matrix_vector,
        "addbmm": add_batched,
    }
    operators = {getattr(torch.ops.aten, name, None): formula for name, formula in formulas.items()}
    return {operator: formula for operator, formula in operators.items() if operator is not None}
