"""Costs by module as torch's FlopCounterMode sees them, and every operator beside it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sema_bench.counting.costs import Costs
from sema_bench.counting.formulas import elementwise_flops, product_formulas
from sema_bench.counting.operators import CONVOLUTIONS, MOVEMENT, SCANS, is_known, scan_flops

#: Functions of torch that convolve; their first three arguments are the maps, the filters and the bias.
_CONVOLVING = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}


@dataclass(frozen=True)
class TorchCount:
    """Costs by module, submodules included, and the operators that are in no table."""

    costs: dict[str, Costs]
    uncovered: set[str]


def count_with_torch(model: nn.Module, image: Tensor) -> TorchCount:
    """Run ``model`` on ``image`` (1, C, H, W), on any device, and count what its operators cost.

    Raises:
        Exception: what the model raises, on the meta device for example because it looks at values.
    """
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    with running_modules(model) as running, counting(running, weights=weights) as census:
        model(image)
    costs = {path: Costs() for path, _ in model.named_modules()}
    for path, cost in census.own.items():
        for ancestor in ancestors(path):
            costs[ancestor] += cost
    return TorchCount(costs, census.uncovered)


class Census(TorchDispatchMode):
    """Sees every operator as a counter has decomposed it, and enters its cost under the running module.

    Attributes:
        own: path of a module → what its own operators cost.
        uncovered: operators that are in no table.
    """

    def __init__(self, formulas: Any, running: Sequence[str], weights: Set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.own: defaultdict[str, Costs] = defaultdict(Costs)
        self.uncovered: set[str] = set()
        self._formulas = formulas
        self._running = running
        self._weights = weights

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        name = packet.__name__
        if packet in self._formulas:
            macs = self._formulas[packet](*args, **(kwargs or {}), out_val=result) // 2
            cost = Costs(**{_kind(name, args, self._weights): macs})
        else:
            if not is_known(func.namespace, name):
                self.uncovered.add(name if func.namespace == "aten" else f"{func.namespace}::{name}")
                return result
            if name in MOVEMENT:
                return result
            normalisation, elementwise = elementwise_flops(name, args, result)
            scanned = scan_flops(args[1].shape, args[2].shape) if name in SCANS else 0
            cost = Costs(0, 0, 0, normalisation, elementwise, scanned)
        self.own[self._running[-1]] += cost
        return result


class _ComplexByDefinition(TorchFunctionMode):
    """Convolves complex maps by four real convolutions: torch saves one of them by more sums, and would count three."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func not in _CONVOLVING:
            return func(*args, **options)
        x, weight, bias = (args[i] if i < len(args) else options.pop(name, None) for i, name in enumerate(_OPERANDS))
        if not (x.is_complex() and weight.is_complex()):
            return func(*args, **(kwargs or {}))

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return func(x, weight, bias, *args[3:], **options)  # type: ignore[no-any-return]

        biases = (None, None) if bias is None else (bias.real, bias.imag)
        real = convolve(x.real, weight.real, biases[0]) - convolve(x.imag, weight.imag)
        return torch.complex(real, convolve(x.real, weight.imag, biases[1]) + convolve(x.imag, weight.real))


_OPERANDS = ("input", "weight", "bias")


class _OneModule(contextlib.nullcontext[None]):
    """Stands in for the counter's tracker of modules, which fails where the input of a module is a parameter."""

    parents = frozenset({"Global"})


@contextlib.contextmanager
def counting(running: Sequence[str] = ("",), *, weights: Set[int] = frozenset()) -> Iterator[Census]:
    """Count what runs in the body.

    Args:
        running: a stack whose last entry is the path of the module that runs.
        weights: storages of weights, by which products with weights are told from others.
    """
    counter = FlopCounterMode(display=False, custom_mapping=product_formulas())
    counter.mod_tracker = _OneModule()  # type: ignore[assignment]
    census = Census(counter.flop_registry, running, weights)
    # The counter stands inside, so that the census sees what it has decomposed.
    with torch.no_grad(), _ComplexByDefinition(), census, counter:  # type: ignore[no-untyped-call]
        yield census
    assert 2 * sum(cost.macs for cost in census.own.values()) == counter.get_total_flops()


def ancestors(path: str) -> Iterator[str]:
    """Yield ``path``, its parents, and "" last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


@contextlib.contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """Give a stack whose last entry is the path of the module that runs; a module outside ``model`` is its caller's."""
    names = {module: name for name, module in model.named_modules()}
    stack = [""]

    def enter(module: nn.Module, inputs: Any) -> None:
        stack.append(names.get(module, stack[-1]))

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        stack.pop()

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _kind(name: str, args: Any, weights: Set[int]) -> str:
    """Tell a product with a weight from a product of two activations, whatever views lie between."""
    if name in CONVOLUTIONS:
        return "convolution"
    operands = (t for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim > 1)
    return "projection" if any(t.untyped_storage()._cdata in weights for t in operands) else "attention"
