"""Tables of operators by cost: some multiply and accumulate, some compute otherwise, some only move data.

Names are those of torch's operators, without overload and without the "_" of an in-place form. An operator in no table
and no formula is *uncovered*, and the record names it: a silent zero would be a miscount.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Statistics, scaling and shifting of every element: FLOPs per element. A layer or group normalisation has the mean,
#: the variance (2), the scale and the shift; a batch normalisation at inference has only the scale and the shift; a
#: softmax has maximum, difference, exponential, sum and division.
NORMALISATION: dict[str, int] = {
    "_batch_norm_with_update": 5,
    "_cudnn_batch_norm_legit": 2,
    "_fused_rms_norm": 3,
    "_log_softmax": 5,
    "_native_batch_norm_legit": 2,
    "_native_batch_norm_legit_no_training": 2,
    "_safe_softmax": 5,
    "_softmax": 5,
    "_weight_norm": 3,
    "_weight_norm_interface": 3,
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

#: Arithmetic on elements and reductions: one FLOP for each element of the largest operand, two for a complex one.
ELEMENTWISE = frozenset(
    """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _prelu_kernel _upsample_bicubic2d_aa _upsample_bilinear2d_aa
    _upsample_nearest_exact2d abs acos adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d add addcdiv addcmul
    addr amax amin angle any argmax argmin asin atan atan2 avg_pool2d avg_pool3d bernoulli bitwise_and bitwise_not
    bitwise_or bitwise_xor ceil celu clamp clamp_max clamp_min cos cosh cummax cumprod cumsum div dropout elu eq erf
    erfinv exp exp2 expm1 feature_dropout floor floor_divide fmod ge gelu glu grid_sampler grid_sampler_2d
    grid_sampler_3d gt hardshrink hardsigmoid hardswish hardtanh isinf isnan le leaky_relu lerp log log1p log2
    log_sigmoid_forward logaddexp logical_and logical_not logical_or logical_xor logsumexp lt masked_fill max max_pool1d
    max_pool2d max_pool2d_with_indices max_pool3d_with_indices maximum mean min minimum mish mul nan_to_num
    native_dropout ne neg polar pow prelu prod reciprocal relu relu6 remainder round rsqrt rsub sgn sigmoid sign silu
    sin sinh softplus softshrink sqrt square std std_mean sub sum tan tanh threshold trunc upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    var var_mean where
    """.split()  # noqa: SIM905
)

#: Discrete Fourier transforms: 5 N log2 N FLOPs over N complex numbers, half of that if one side is real.
FOURIER = frozenset({"_fft_c2c", "_fft_c2r", "_fft_r2c"})

#: Views, copies, fills, gathering and queries of shapes: no arithmetic.
MOVEMENT = frozenset(
    """
    _assert_async _conj _conj_physical _fused_sdp_choice _local_scalar_dense _neg_view _reshape_alias _reshape_copy
    _to_copy _unsafe_index _unsafe_view alias arange as_strided broadcast_tensors cat channel_shuffle chunk clone col2im
    complex constant_pad_nd contiguous copy detach device diagonal embedding empty empty_like empty_permuted
    empty_strided expand expand_as eye fill flatten flip full full_like gather getitem hstack im2col imag index
    index_add index_copy index_put index_select is_contiguous is_same_size item layout lift_fresh linspace masked_select
    meshgrid movedim narrow native_channel_shuffle new_empty new_empty_strided new_full new_ones new_zeros nonzero numel
    numpy_T one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle prim_layout rand rand_like randn randn_like
    real reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape resolve_conj roll scalar_tensor scatter scatter_add select select_scatter size slice
    slice_scatter sort split split_with_sizes squeeze stack swapaxes sym_numel sym_size sym_storage_offset sym_stride t
    take_along_dim tensor_split tile to topk transpose tril triu type_as unbind unflatten unfold unfold_copy
    unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze view view_as view_as_complex view_as_real view_copy
    vstack zero zeros zeros_like
    """.split()  # noqa: SIM905
)

#: Selective scans: elementwise work that is a large part of its model, counted separately.
SCANS = frozenset({"selective_scan", "selective_scan_native", "selective_scan_triton", "softplus_scan_native"})
#: FLOPs of a selective scan per token, channel and state, as its authors count them.
SCAN_FLOPS_PER_STATE = 9

CONVOLUTIONS = frozenset(
    """
    _convolution conv1d conv2d conv3d conv_tbc conv_transpose2d convolution convolution_overrideable cudnn_convolution
    deform_conv2d mkldnn_convolution slow_conv2d_forward thnn_conv2d
    """.split()  # noqa: SIM905
)


#: Namespaces of the tables; a user's operator may have any name.
_NAMESPACES = frozenset({"aten", "prim", "prims", "sema"})


def is_known(namespace: str, name: str) -> bool:
    """Check whether a table has the cost of an operator without multiply-accumulates."""
    name = name.removesuffix("_")
    tables = (NORMALISATION, ELEMENTWISE, FOURIER, MOVEMENT, SCANS)
    return namespace in _NAMESPACES and any(name in table for table in tables)


def scan_flops(delta: Sequence[int], decay_rates: Sequence[int]) -> int:
    """Count the FLOPs of a selective scan from the shapes of two operands, without skip terms and gates."""
    return SCAN_FLOPS_PER_STATE * math.prod(delta) * decay_rates[-1]


def attention_macs(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Count the MACs of fused attention: Q (…, N, d) times Kᵀ, and the weights times V (…, M, e)."""
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
