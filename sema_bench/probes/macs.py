"""Multiply-accumulates from three sources that must agree: a formula and two counters.

All three look at one image on the meta device, in float32 and eager mode: the count depends on shapes
alone, so it costs no memory and does not touch anything that is timed. 1 MAC = 2 FLOPs.

The published "FLOPs" of this field are MACs, and many are miscounted: fvcore has no handler for fused
attention and only logs a line, FlopCounterMode counts 2 × MACs and passes over what it does not know.
Here an operator that no counter knows is named in the record, and a disagreement is an error.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sema_bench.probes.base import Findings, Probe, ProbeError
from sema_bench.schema import Measurement

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sema.macs import Macs
    from sema_bench.subject import Subject

#: Largest relative difference between two sources.
TOLERANCE = 0.005

#: Operators without multiply-accumulates in the sense of this field: data movement, elementwise work,
#: activations, normalisation, reductions, pooling, resizing, and scans, whose FLOPs stand apart. Anything neither here
#: nor counted is reported.
NO_MACS = frozenset(
    """
    abs add add_ addcmul alias arange
    avg_pool2d batch_norm bernoulli bernoulli_ bitwise_and bitwise_not bitwise_or cat chunk
    clamp clamp_min clone constant_pad_nd contiguous copy copy_ cos cumsum detach div div_ dropout elu empty
    empty_like empty_strided eq exp expand expand_as expm1 feature_dropout fill fill_ flatten flip full full_like
    ge gelu getitem group_norm gt hardtanh hardtanh_ index index_put index_select instance_norm le layer_norm
    leaky_relu lift_fresh linspace log log1p log_softmax logical_and logical_not logsumexp lt masked_fill
    masked_fill_ max max_pool2d maximum mean meshgrid min minimum mul mul_ narrow native_batch_norm
    native_group_norm native_layer_norm ne neg new_empty new_full new_zeros norm numpy_T ones ones_like pad permute pow
    prod reciprocal relu relu6 relu_ repeat reshape rms_norm roll rsqrt rsub scalar_tensor select sigmoid sign silu
    silu_ sin slice slice_scatter softmax softplus split split_with_sizes sqrt squeeze stack std sub sub_ sum t
    tanh tile to _to_copy transpose tril triu type_as unbind unflatten unfold unsqueeze upsample_bicubic2d
    upsample_bilinear2d upsample_nearest2d var var_mean view view_as where zero_ zeros zeros_like
    adaptive_avg_pool2d _adaptive_avg_pool2d _assert_async _cudnn_batch_norm_legit _fused_sdp_choice _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax _softmax _unsafe_view
    _upsample_bicubic2d_aa any is_same_size linalg_vector_norm normalize numel size sym_size sym_numel sym_stride
    _local_scalar_dense item polar view_as_complex view_as_real complex real imag ceil floor round remainder
    floor_divide selective_scan selective_scan_triton
    """.split()  # noqa: SIM905
)

#: FLOPs of a selective scan per token, channel and state, as its authors count them.
SCAN_FLOPS_PER_STATE = 9

_SCANS = frozenset({"selective_scan", "selective_scan_triton"})


class MacsProbe(Probe):
    """Multiply-accumulates: analytic, fvcore and FlopCounterMode, which must agree within 0.5 %."""

    on_meta = True
    metrics = (
        "macs",
        "flops",
        "scan_flops",
        "macs_attention",
        "macs_projection",
        "macs_convolution",
        "macs_fvcore",
        "macs_flop_counter",
    )

    def measure(self, subject: Subject) -> Findings:
        model, image = subject.meta_model(), subject.meta_image()
        by_fvcore, fvcore_uncovered = count_with_fvcore(model, image)
        by_torch, torch_uncovered = count_with_flop_counter(model, image)
        sources = {"fvcore": by_fvcore, "FlopCounterMode / 2": by_torch}
        analytic: Macs | None = None
        if hasattr(model, "macs"):  # models of others have no formula
            analytic = model.macs((subject.cell.height, subject.cell.width))  # type: ignore[operator]
            sources = {"analytic": float(analytic.total), **sources}
        uncovered = sorted(fvcore_uncovered | torch_uncovered)
        if max(sources.values()) > (1 + TOLERANCE) * min(sources.values()):
            listed = ", ".join(f"{name} {value:,.0f}" for name, value in sources.items())
            raise ProbeError(
                f"the MAC counts disagree by more than {TOLERANCE:.1%}: {listed}; "
                f"uncovered operators: {', '.join(uncovered) or 'none'}"
            )
        scanned = count_scan_flops(model, image)
        measurements = {"macs_fvcore": by_fvcore, "macs_flop_counter": by_torch, "scan_flops": scanned}
        if analytic is None:
            measurements |= {"macs": by_torch, "flops": 2 * by_torch + scanned}
        else:
            # A skip term and a gate add one FLOP each to the 9 of every state.
            if not scanned <= analytic.scan_flops <= scanned * (1 + 2 / SCAN_FLOPS_PER_STATE):
                raise ProbeError(
                    f"the scans run {scanned:,} FLOPs, skip terms and gates apart, and the model says "
                    f"{analytic.scan_flops:,}"
                )
            measurements |= {
                "macs": analytic.total,
                "flops": 2 * analytic.total + analytic.scan_flops,
                "scan_flops": analytic.scan_flops,
                "macs_attention": analytic.attention,
                "macs_projection": analytic.projection,
                "macs_convolution": analytic.convolution,
            }
        return Findings(
            tuple(Measurement(metric=name, value=measurements[name]) for name in self.metrics if name in measurements),
            {"uncovered_operators": uncovered},
        )


def count_with_flop_counter(model: nn.Module, image: Tensor) -> tuple[float, set[str]]:
    """Return (MACs, names of operators it did not count) by torch's FlopCounterMode, for ``image`` (1, C, H, W)."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    seen: set[str] = set()

    class Census(TorchDispatchMode):
        """Notes the name of every operator that runs."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._overloadpacket not in counter.flop_registry:
                seen.add(func._overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    counter = FlopCounterMode(display=False, custom_mapping=_missing_formulas())
    # Inside the counter, so that the census sees what the counter has decomposed.
    with torch.no_grad(), Census(), counter:  # type: ignore[no-untyped-call]
        model(image)
    return counter.get_total_flops() / 2, seen - NO_MACS


def count_scan_flops(model: nn.Module, image: Tensor) -> int:
    """Return the FLOPs of the selective scans that ``model`` runs on ``image``, skip terms and gates apart."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    total = 0

    class Scans(TorchDispatchMode):
        """Adds up the sizes of the scans that run."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total
            if func._overloadpacket.__name__ in _SCANS:
                _, delta, decay_rates, *_ = args
                total += SCAN_FLOPS_PER_STATE * delta.numel() * decay_rates.shape[-1]
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Scans():  # type: ignore[no-untyped-call]
        model(image)
    return total


def count_with_fvcore(model: nn.Module, image: Tensor) -> tuple[float, set[str]]:
    """Return (MACs, names of operators it did not count) by fvcore with our handlers, for ``image`` (1, C, H, W)."""
    import torch
    from fvcore.nn import FlopCountAnalysis

    from sema_bench.probes.meta_trace import tracing_on_meta

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that became constants, as they should
        analysis = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        analysis.clear_op_handles()
        analysis.set_op_handle(**{f"aten::{name}": handle for name, handle in _FVCORE_HANDLES.items()})
        with tracing_on_meta():
            total = float(analysis.total())
        unsupported = {name.removeprefix("aten::").removeprefix("sema::") for name in analysis.unsupported_ops()}
    return total, {name for name in unsupported if name not in NO_MACS and not name.startswith("prim::")}


def _missing_formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs of operators that FlopCounterMode passes over, in all builds of torch or in some."""
    import torch

    def attention(query: list[int], key: list[int], value: list[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])

    def matrix_vector(matrix: list[int], vector: list[int], *_: Any, **__: Any) -> int:
        return 2 * math.prod(matrix)

    def add_matrix_vector(bias: list[int], matrix: list[int], vector: list[int], *_: Any, **__: Any) -> int:
        return matrix_vector(matrix, vector)

    formulas: dict[str, Callable[..., int]] = {
        "_scaled_dot_product_flash_attention_for_cpu": attention,
        "_scaled_dot_product_fused_attention_overrideable": attention,
        "mv": matrix_vector,
        "dot": matrix_vector,
        "addmv": add_matrix_vector,
    }
    operators = {getattr(torch.ops.aten, name, None): formula for name, formula in formulas.items()}
    return {operator: formula for operator, formula in operators.items() if operator is not None}


def _shape(value: Any) -> list[int]:
    shape = value.type().sizes()
    if shape is None:
        raise ProbeError("fvcore cannot see the shape of an operand")
    return list(shape)


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _addmm(inputs: list[Any], outputs: list[Any]) -> int:
    return _matmul(inputs[1:], outputs)


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = (_shape(x) for x in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Count one contraction of two operands: the product of the sizes of all its letters."""
    left, _, _ = inputs[0].toIValue().replace(" ", "").partition("->")
    operands = [_shape(x) for x in inputs[1].node().inputs()]
    if len(operands) > 2:
        raise ProbeError(f"einsum of {len(operands)} operands has no single count; write it as products of two")
    letters = {
        letter: size
        for term, shape in zip(left.split(","), operands, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(letters.values()) if len(operands) == 2 else 0


_FVCORE_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "linear": _matmul,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "addbmm": _addmm,
    "einsum": _einsum,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "_convolution": _convolution,
    "scaled_dot_product_attention": _attention,
}
