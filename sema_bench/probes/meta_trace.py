"""Trace a model for fvcore on the meta device: exact shapes, no memory, no arithmetic.

fvcore reads a TorchScript trace. Tracing turns every size that Python sees into a tensor, which models (``divmod``)
and torch's own meta kernels (``torch._check``) refuse, and tracing on a real device costs a forward pass. So the model
is first flattened into a graph of operators with its sizes as constants, and that graph is traced with every kernel
run in another thread, where no trace is on (the tracing state belongs to a thread).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def flatten(model: nn.Module, image: Tensor) -> GraphModule:
    """Return ``model`` as a graph of operators, fused ones kept whole, for inputs of the shape of ``image``."""
    graph_module = make_fx(model, pre_dispatch=True)(image)
    convolutions = {getattr(torch.ops.aten, f"conv{n}d").default: n for n in (1, 2, 3)}
    for node in graph_module.graph.nodes:
        if node.target in convolutions:
            node.args = _convolution_arguments(convolutions[node.target], *node.args)
            node.target = torch.ops.aten._convolution.default  # the form that a trace records
    graph_module.recompile()
    return graph_module


@contextmanager
def kernels_untraced() -> Iterator[None]:
    """While this is active, kernels run outside the trace and give new meta tensors of the right shape."""

    class Outside(TorchDispatchMode):
        """Sends every operator to the other thread."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return pool.submit(_run, func, args, kwargs or {}).result()

    with ThreadPoolExecutor(1) as pool, Outside():
        yield


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return tree_map_only(Tensor, _same_shape, func(*args, **kwargs))


def _same_shape(x: Tensor) -> Tensor:
    """A tensor of the same shape that is no view of another (autograd refuses views from a dispatch mode)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _convolution_arguments(
    dims: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    def each(value: Any) -> list[int]:
        return list(value) if isinstance(value, list | tuple) else [value] * dims

    no = False
    return (x, weight, bias, each(stride), each(padding), each(dilation), no, [0] * dims, groups, no, no, no, no)
