"""Multiply-accumulates by module as fvcore's trace sees them, with handlers for what fvcore lacks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import flop_registry

from sema_bench.ledger.meta_trace import tracing_on_meta
from sema_bench.ledger.operators import attention_macs, einsum_macs, is_known

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FvcoreCount:
    """MACs by module, submodules included, and the operators that are in no table."""

    macs: dict[str, int]
    uncovered: set[str]


def count_with_fvcore(model: nn.Module, image: Tensor) -> FvcoreCount:
    """Trace ``model`` on ``image`` (1, C, H, W) of the meta device and count its multiply-accumulates.

    Raises:
        Exception: what the model raises in a trace, for example because it looks at values.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about sizes that became constants, as they should
        analysis = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        analysis.clear_op_handles()
        analysis.set_op_handle(**{f"aten::{name}": handle for name, handle in _HANDLES.items()}, **_registered())
        with tracing_on_meta():
            by_module = analysis.by_module()
        unsupported = {tuple(name.split("::")) for name in analysis.unsupported_ops() if not name.startswith("prim::")}
    uncovered = {
        name if namespace == "aten" else f"{namespace}::{name}"
        for namespace, name in unsupported
        if not is_known(namespace, name)
    }
    macs = {path: round(by_module[path]) for path, _ in model.named_modules()}
    return FvcoreCount(macs, uncovered)


def _registered() -> dict[str, Callable[[list[Any], list[Any]], int]]:
    """Handlers for operators of others whose formula is registered with torch's counter (``register_flop_formula``)."""
    return {
        str(packet).replace(".", "::"): _by_formula(formula)
        for packet, formula in flop_registry.items()
        if isinstance(packet, OpOverloadPacket) and not str(packet).startswith("aten.")
    }


def _by_formula(formula: Callable[..., int]) -> Callable[[list[Any], list[Any]], int]:
    def handle(inputs: list[Any], outputs: list[Any]) -> int:
        arguments = (_argument(value) for value in inputs)
        return formula(*arguments, out_val=_argument(outputs[0])) // 2

    return handle


def _argument(value: Any) -> Any:
    """Return what an operator of a trace was called with: a tensor without memory, or a constant."""
    if isinstance(value.type(), torch._C.TensorType):
        return torch.empty(_shape(value), device="meta")
    return value.toIValue()


def _shape(value: Any) -> list[int]:
    shape = value.type().sizes()
    if shape is None:
        raise ValueError("fvcore cannot see the shape of an operand")
    return list(shape)


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _addmm(inputs: list[Any], outputs: list[Any]) -> int:
    return _matmul(inputs[1:], outputs)


def _addbmm(inputs: list[Any], outputs: list[Any]) -> int:
    batch, rows, inner = _shape(inputs[1])
    return batch * rows * inner * _shape(inputs[2])[-1]


def _convolution(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * math.prod(_shape(inputs[1])[1:])


def _general_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    transposed = inputs[6].toIValue()
    mapped = inputs[0] if transposed else outputs[0]  # each element of the map meets one filter
    return math.prod(_shape(mapped)) * math.prod(_shape(inputs[1])[1:])


def _transposed_convolution(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(inputs[0])) * math.prod(_shape(inputs[1])[1:])


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    return attention_macs(*(_shape(x) for x in inputs[:3]))


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    return einsum_macs(inputs[0].toIValue(), [_shape(x) for x in inputs[1].node().inputs()])


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "linear": _matmul,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "addbmm": _addbmm,
    "einsum": _einsum,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "conv3d": _convolution,
    "conv_transpose2d": _transposed_convolution,
    "_convolution": _general_convolution,
    "scaled_dot_product_attention": _attention,
}
