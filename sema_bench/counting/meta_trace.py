"""Let fvcore trace a model on the meta device: exact shapes, no memory, no arithmetic.

fvcore reads a TorchScript trace. Such a trace turns every size that Python sees into a tensor, which models
(``divmod``) and torch's meta kernels (``torch._check``) refuse, and on a real device it costs a forward pass. The
tracer's state is local to a thread, so sizes are read and kernels run in another thread: Python sees plain numbers, and
the trace still records every operator.
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

_SHAPE: Any = Tensor.shape
_SIZES = {_SHAPE.__get__, Tensor.size, Tensor.numel, Tensor.nelement, Tensor.stride, Tensor.__len__}


@contextmanager
def tracing_on_meta(model: nn.Module) -> Iterator[None]:
    """Make a TorchScript trace of ``model`` work on the meta device, with complete shapes.

    A trace drops what the output does not depend on, so make every result an output: everything that runs is counted.
    """
    results: list[Tensor] = []
    within: set[Any] = set()

    class PlainSizes(TorchFunctionMode):
        """Answer queries of sizes with numbers, and write convolutions in the form that a trace records."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in _SIZES:
                return elsewhere.submit(func, *args, **(kwargs or {})).result()
            body = CONVOLUTIONS.get(func)
            if body is None and isinstance(func, FunctionType) and func not in within:
                body = _without_overrides(func)
            if body is None:
                result = func(*args, **(kwargs or {}))
                results.extend(leaf for leaf in tree_leaves(result) if _is_plain(leaf))
                return result
            within.add(func)
            try:
                with self:  # for the sizes that it reads
                    return body(*args, **(kwargs or {}))
            finally:
                within.discard(func)

    class Untraced(TorchDispatchMode):
        """Run kernels in the other thread."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return elsewhere.submit(_run, func, args, kwargs or {}).result()

    hook = model.register_forward_hook(lambda module, inputs, output: (output, results))
    try:
        with ThreadPoolExecutor(1) as elsewhere, Untraced(), PlainSizes():
            yield
    finally:
        hook.remove()


def _is_plain(value: object) -> bool:
    """Check whether this is a tensor that may leave its function; those of ``torch.vmap`` may not."""
    return isinstance(value, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def _without_overrides(func: FunctionType) -> FunctionType:
    """Copy a Python function of torch without its check for overrides."""
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
    """Make a tensor of the same shape that is not a view: autograd refuses views from a dispatch mode."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


#: Arguments of torch's convolutions after the bias.
_OPTIONS = ("stride", "padding", "dilation", "groups")
_OPTIONS_TRANSPOSED = ("stride", "padding", "output_padding", "groups", "dilation")


def _convolve(
    dims: int,
    transposed: bool,
    input: Tensor,  # noqa: A002 - torch's own name, as callers pass it
    weight: Tensor,
    bias: Tensor | None = None,
    *rest: Any,
    **options: Any,
) -> Tensor:
    options |= zip(_OPTIONS_TRANSPOSED if transposed else _OPTIONS, rest, strict=False)
    stride, dilation = (_each(options.get(name, 1), dims) for name in ("stride", "dilation"))
    padding = options.get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [step * (side - 1) for step, side in zip(dilation, weight.shape[2:], strict=True)]
        padding = [total // 2 for total in reach]
        if odd := [total % 2 for total in reach]:
            input = torch.constant_pad_nd(input, [side for end in reversed(odd) for side in (0, end)])  # noqa: A001
    batched = input.dim() == dims + 2
    extra, groups, no = _each(options.get("output_padding", 0), dims), options.get("groups", 1), False
    result = torch._convolution(
        input if batched else input.unsqueeze(0),
        *(weight, bias, stride, _each(padding, dims), dilation, transposed, extra, groups),
        *(no, no, no, no),  # settings of cuDNN
    )
    return result if batched else result.squeeze(0)


#: Function of torch that convolves → its form that a trace records.
CONVOLUTIONS: dict[Any, Callable[..., Tensor]] = {
    getattr(torch, f"{name}{dims}d"): partial(_convolve, dims, transposed)
    for name, transposed in (("conv", False), ("conv_transpose", True))
    for dims in (1, 2, 3)
}


def _each(value: Any, dims: int) -> list[int]:
    many = list(value) if isinstance(value, list | tuple) else [value]
    return many * dims if len(many) == 1 else many
