"""Count multiply-accumulates by module in fvcore's trace, with handlers that fvcore lacks.

A trace records composite operators such as ``tensordot`` or ``einsum`` whole. Those without a handler run again, and
their parts are counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.utils.flop_counter import flop_registry

from sema_bench.counting.by_torch import counting
from sema_bench.counting.formulas import product_formulas, real_products
from sema_bench.counting.meta_trace import tracing_on_meta
from sema_bench.counting.operators import attention_macs, is_known

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its import calls deprecated functions of torch
    from fvcore.nn import FlopCountAnalysis

#: (inputs, outputs) of an operator in the trace → MACs.
_Handle = Callable[[list[Any], list[Any]], int]


def count_with_fvcore(model: nn.Module, image: Tensor) -> tuple[dict[str, int], set[str]]:
    """Trace ``model`` on a meta ``image`` (1, C, H, W); return the MACs of each module, and uncovered operators."""
    uncovered: set[str] = set()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns that sizes become constants, as they should
        analysis = FlopCountAnalysis(model, image).unsupported_ops_warnings(False)
        analysis.uncalled_modules_warnings(False)
        analysis.clear_op_handles()
        analysis.set_op_handle(**_handles(uncovered))
        with tracing_on_meta(model):
            by_module = analysis.by_module()
    uncovered |= {kind for kind in analysis.unsupported_ops() if not kind.startswith("prim::")}
    named = {kind.removeprefix("aten::") for kind in uncovered if not is_known(*kind.split("::"))}
    return {path: round(by_module[path]) for path, _ in model.named_modules()}, named


def _handles(uncovered: set[str]) -> dict[str, _Handle]:
    """Map every operator that may multiply and accumulate to its handle, which adds parts to ``uncovered``."""

    def composite(inputs: list[Any], outputs: list[Any]) -> int:
        node = outputs[0].node()
        try:
            with counting() as census:
                _run_again(node)
        except Exception:  # an operand is not in the trace, or there is no meta kernel
            uncovered.add(node.kind())
            return 0
        uncovered.update(name if "::" in name else f"aten::{name}" for name in census.uncovered)
        return sum(cost.macs for cost in census.own.values())

    def python_function(inputs: list[Any], outputs: list[Any]) -> int:
        return sum(map(count, outputs[0].node().g("Subgraph").nodes()))

    def count(node: Any) -> int:
        kind = f"{node.kind()}.{node.pyname()}" if node.kind() == "prim::PythonOp" else node.kind()
        if kind in handles:
            return handles[kind](list(node.inputs()), list(node.outputs()))
        if not kind.startswith("prim::"):
            uncovered.add(kind)
        return 0

    names = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
    packets = {name.partition(".")[0] for name in names}
    handles: dict[str, _Handle] = {name: composite for name in packets if not is_known(*name.split("::"))}
    handles |= {f"prim::PythonOp.{name}": python_function for name in _autograd_functions()}
    handles |= _by_formulas() | _HANDLES
    return handles


def _autograd_functions() -> set[str]:
    """Name all subclasses of ``autograd.Function``: a trace holds a subgraph for each."""
    known: list[type] = [torch.autograd.Function]
    for function in known:
        known += function.__subclasses__()
    return {function.__name__ for function in known}


def _run_again(node: Any) -> None:
    """Call the operator of ``node`` on the meta device."""
    schema = torch._C.parse_schema(node.schema())
    namespace, name = schema.name.split("::")
    operator = getattr(getattr(getattr(torch.ops, namespace), name), schema.overload_name or "default")
    called = [(argument, _argument(value)) for argument, value in zip(schema.arguments, node.inputs(), strict=True)]
    options = {argument.name: value for argument, value in called if argument.kwarg_only}
    operator(*(value for argument, value in called if not argument.kwarg_only), **options)


def _by_formulas() -> dict[str, _Handle]:
    """Make handles from the formulas of torch's counter, including those of users (``register_flop_formula``)."""
    formulas = {packet: f for packet, f in flop_registry.items() if isinstance(packet, OpOverloadPacket)}
    formulas |= product_formulas()
    return {str(packet).replace(".", "::"): partial(_by_formula, formula) for packet, formula in formulas.items()}


def _by_formula(formula: Callable[..., int], inputs: list[Any], outputs: list[Any]) -> int:
    return formula(*map(_argument, inputs), out_val=_argument(outputs[0])) // 2


def _argument(value: Any) -> Any:
    """Rebuild an argument of an operator in a trace: a tensor without memory, a constant, or a list of both."""
    if isinstance(value.type(), torch._C.TensorType):
        return torch.empty_strided(_shape(value), value.type().strides(), dtype=value.type().dtype(), device="meta")
    if value.node().kind() == "prim::ListConstruct":
        return [_argument(item) for item in value.node().inputs()]
    return value.toIValue()


def _shape(value: Any) -> list[int]:
    shape = value.type().sizes()
    if shape is None:
        raise ValueError("fvcore cannot see the shape of an operand")
    return list(shape)


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _addbmm(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_shape(inputs[1])) * _shape(inputs[2])[-1]


def _convolution(inputs: list[Any], outputs: list[Any], *, transposed: bool = False) -> int:
    mapped = inputs[0] if transposed else outputs[0]  # each element of the map meets one filter
    return math.prod(_shape(mapped)) * math.prod(_shape(inputs[1])[1:])


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Count each weight of each layer, direction and gate once per step."""
    steps = math.prod(_shape(inputs[0])[:-1])  # (T, B, C), (T, C) or, packed, (all steps, C)
    weights = [value for value in inputs if value.node().kind() == "prim::ListConstruct"][-1].node().inputs()
    shapes = map(_shape, weights)
    return steps * sum(math.prod(shape) for shape in shapes if len(shape) == 2)  # the rest are biases


def _scripted(inputs: list[Any], outputs: list[Any]) -> int:
    raise ValueError("fvcore cannot see into a scripted function")


def _in_real_products(handle: _Handle, inputs: list[Any], outputs: list[Any]) -> int:
    dtypes: Any = (value.type().dtype() for value in inputs if isinstance(value.type(), torch._C.TensorType))
    return handle(inputs, outputs) * real_products(dtypes)


_PRODUCTS: dict[str, _Handle] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "linear"), _matmul),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), lambda inputs, outputs: _matmul(inputs[1:], outputs)),
    "addbmm": _addbmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "conv_transpose2d": partial(_convolution, transposed=True),
    "_convolution": lambda inputs, outputs: _convolution(inputs, outputs, transposed=inputs[6].toIValue()),
    "scaled_dot_product_attention": lambda inputs, outputs: attention_macs(*map(_shape, inputs[:3])),
}
_HANDLES: dict[str, _Handle] = {
    f"aten::{name}": partial(_in_real_products, handle) for name, handle in _PRODUCTS.items()
}
_HANDLES |= dict.fromkeys(("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"), _recurrent)
_HANDLES["prim::CallFunction"] = _scripted
