"""Let fvcore trace a model on the meta device: exact shapes, no memory, no arithmetic.

fvcore reads a TorchScript trace. Such a trace turns every size that Python sees into a tensor, which models
(``divmod``) and torch's own meta kernels (``torch._check``) refuse, and on a real device it costs a forward pass.
The state of the tracer belongs to a thread. So, while the model is traced, sizes are read and kernels are run in
another thread, where no trace is on: Python sees plain numbers, and the trace still records every operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_SIZES = {Tensor.shape.__get__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.__len__}  # type: ignore[attr-defined]


@contextmanager
def tracing_on_meta(model: nn.Module) -> Iterator[None]:
    """While this is active, a TorchScript trace of ``model`` on the meta device works and has complete shapes.

    A trace drops what the output does not depend on. So every result becomes an output, and all that runs is counted.
    """
    results: list[Tensor] = []
    within: set[Any] = set()

    class PlainSizes(TorchFunctionMode):
        """Answers for sizes with numbers, and writes convolutions in the form that a trace records."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _SIZES:
                return elsewhere.submit(func, *args, **(kwargs or {})).result()
            body = _CONVOLUTIONS.get(func)
            if body is None and isinstance(func, FunctionType) and func not in within:
                body = _without_overrides(func)
            if body is None:
                result = func(*args, **(kwargs or {}))
                results.extend(leaf for leaf in tree_leaves(result) if _is_plain(leaf))
                return result
            within.add(func)
            try:
                with self:  # for the sizes that it looks at
                    return body(*args, **(kwargs or {}))
            finally:
                within.discard(func)

    class Untraced(TorchDispatchMode):
        """Runs kernels in the other thread."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return elsewhere.submit(_run, func, args, kwargs or {}).result()

    hook = model.register_forward_hook(lambda module, inputs, output: (output, results))
    try:
        with ThreadPoolExecutor(1) as elsewhere, Untraced(), PlainSizes():  # type: ignore[no-untyped-call]
            yield
    finally:
        hook.remove()


def _is_plain(value: object) -> bool:
    """Tell whether this is a tensor that may leave the function that made it: not so inside of ``torch.vmap``."""
    return isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _without_overrides(func: FunctionType) -> FunctionType:
    """Copy a Python function of torch's so that it runs at once, and does not ask for another way of running first."""
    names = (name for name in func.__globals__ if name.startswith("has_torch_function"))
    scope = func.__globals__ | dict.fromkeys(names, lambda *_: False)
    copy = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    if func in (torch.ops.aten._convolution.default, torch.ops.aten.convolution_overrideable.default):
        func, args = torch.ops.aten.convolution.default, args[:9]  # the others have no meta kernel in torch 2.6
    with torch.no_grad():
        return tree_map_only(Tensor, _same_shape, func(*args, **kwargs))


def _same_shape(x: Tensor) -> Tensor:
    """A tensor of the same shape that is no view of another (autograd refuses views from a dispatch mode)."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _convolve(
    dims: int,
    input: Tensor,  # noqa: A002 - torch's own name, as callers pass it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [step * (side - 1) for step, side in zip(_each(dilation, dims), weight.shape[2:], strict=True)]
        padding = [total // 2 for total in reach]
        if odd := [total % 2 for total in reach]:
            input = torch.constant_pad_nd(input, [side for end in reversed(odd) for side in (0, end)])  # noqa: A001
    steps = (stride, padding, dilation)
    return _general_convolution(dims, input, weight, bias, steps, groups, transposed=False, output_padding=0)


def _convolve_transposed(
    dims: int,
    input: Tensor,  # noqa: A002 - torch's own name, as callers pass it
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    steps = (stride, padding, dilation)
    return _general_convolution(
        dims, input, weight, bias, steps, groups, transposed=True, output_padding=output_padding
    )


_CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    torch.conv1d: partial(_convolve, 1),
    torch.conv2d: partial(_convolve, 2),
    torch.conv3d: partial(_convolve, 3),
    torch.conv_transpose1d: partial(_convolve_transposed, 1),
    torch.conv_transpose2d: partial(_convolve_transposed, 2),
    torch.conv_transpose3d: partial(_convolve_transposed, 3),
}


def _general_convolution(
    dims: int,
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    steps: tuple[Any, Any, Any],
    groups: int,
    *,
    transposed: bool,
    output_padding: Any,
) -> Tensor:
    batched = maps.dim() == dims + 2
    stride, padding, dilation = (_each(value, dims) for value in steps)
    extra = _each(output_padding, dims)
    no = False
    result = torch._convolution(
        maps if batched else maps.unsqueeze(0),
        *(weight, bias, stride, padding, dilation, transposed, extra, groups),
        *(no, no, no, no),  # settings of cuDNN
    )
    return result if batched else result.squeeze(0)


def _each(value: Any, dims: int) -> list[int]:
    many = list(value) if isinstance(value, list | tuple) else [value]
    return many * dims if len(many) == 1 else many
