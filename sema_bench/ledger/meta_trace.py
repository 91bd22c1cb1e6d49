"""Let fvcore trace a model on the meta device: exact shapes, no memory, no arithmetic.

fvcore reads a TorchScript trace. Such a trace turns every size that Python sees into a tensor, which models
(``divmod``) and torch's own meta kernels (``torch._check``) refuse, and on a real device it costs a forward pass.
The state of the tracer belongs to a thread. So, while the model is traced, sizes are read and kernels are run in
another thread, where no trace is on: Python sees plain numbers, and the trace still records every operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.__len__}  # type: ignore[attr-defined]
_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_TRANSPOSED_CONVOLUTIONS = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}


@contextmanager
def tracing_on_meta() -> Iterator[None]:
    """While this is active, a TorchScript trace of a model on the meta device works and has complete shapes."""

    class PlainSizes(TorchFunctionMode):
        """Answers for sizes with numbers, and writes convolutions in the form that a trace records."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _SIZES:
                return elsewhere.submit(func, *args, **(kwargs or {})).result()
            if func in _CONVOLUTIONS:
                return torch._convolution(*_convolution_arguments(_CONVOLUTIONS[func], *args, **(kwargs or {})))
            if func in _TRANSPOSED_CONVOLUTIONS:
                dims = _TRANSPOSED_CONVOLUTIONS[func]
                return torch._convolution(*_transposed_arguments(dims, *args, **(kwargs or {})))
            return func(*args, **(kwargs or {}))

    class Untraced(TorchDispatchMode):
        """Runs kernels in the other thread."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return elsewhere.submit(_run, func, args, kwargs or {}).result()

    with ThreadPoolExecutor(1) as elsewhere, Untraced(), PlainSizes():  # type: ignore[no-untyped-call]
        yield


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func in (torch.ops.aten._convolution.default, torch.ops.aten.convolution_overrideable.default):
        func, args = torch.ops.aten.convolution.default, args[:9]  # the others have no meta kernel in torch 2.6
    with torch.no_grad():
        return tree_map_only(Tensor, _same_shape, func(*args, **kwargs))


def _same_shape(x: Tensor) -> Tensor:
    """A tensor of the same shape that is no view of another (autograd refuses views from a dispatch mode)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _convolution_arguments(
    dims: int,
    input: Tensor,  # noqa: A002 - torch's own name, as callers pass it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    if padding == "valid":
        padding = 0
    elif padding == "same":
        steps = zip(_each(dilation, dims), weight.shape[2:], strict=True)
        padding = [step * (side - 1) // 2 for step, side in steps]
    return _arguments(dims, input, weight, bias, stride, padding, dilation, groups, transposed=False, output_padding=0)


def _transposed_arguments(
    dims: int,
    input: Tensor,  # noqa: A002 - torch's own name, as callers pass it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:
    return _arguments(
        dims, input, weight, bias, stride, padding, dilation, groups, transposed=True, output_padding=output_padding
    )


def _arguments(
    dims: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    *,
    transposed: bool,
    output_padding: Any,
) -> tuple[Any, ...]:
    steps = (_each(value, dims) for value in (stride, padding, dilation))
    no = False
    return (x, weight, bias, *steps, transposed, _each(output_padding, dims), groups, no, no, no, no)


def _each(value: Any, dims: int) -> list[int]:
    return list(value) if isinstance(value, list | tuple) else [value] * dims
