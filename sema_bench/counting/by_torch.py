"""Count costs by module with torch's FlopCounterMode, and the operators that it ignores."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sema_bench.counting.costs import Costs
from sema_bench.counting.formulas import elementwise_flops, product_formulas
from sema_bench.counting.meta_trace import CONVOLUTIONS as CONVOLVING
from sema_bench.counting.operators import CONVOLUTIONS, MOVEMENT, SCANS, is_known, scan_flops

#: First arguments of torch's convolutions.
_OPERANDS = ("input", "weight", "bias")


def count_with_torch(model: nn.Module, image: Tensor) -> tuple[dict[str, Costs], set[str]]:
    """Run ``model`` on ``image`` (1, C, H, W); return the costs of each module, and uncovered operators."""
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    with running_modules(model) as running, counting(running, weights=weights) as census:
        model(image)
    costs = {path: Costs() for path, _ in model.named_modules()}
    for path, cost in census.own.items():
        for ancestor in {"", *itertools.accumulate(path.split("."), "{}.{}".format)}:
            costs[ancestor] += cost
    return costs, census.uncovered


class Census(TorchDispatchMode):
    """Sees every operator after the counter has decomposed it, and adds its cost to the running module.

    Attributes:
        own: path of a module → costs of its operators, submodules excluded.
        uncovered: operators in no table.
    """

    def __init__(self, formulas: Any, running: Sequence[str], weights: Set[int]) -> None:
        super().__init__()
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
            name = name.removesuffix("_")  # of an in-place form
            if name in MOVEMENT:
                return result
            normalisation, elementwise = elementwise_flops(name, args, result)
            scanned = scan_flops(args[1].shape, args[2].shape) if name in SCANS else 0
            cost = Costs(0, 0, 0, normalisation, elementwise, scanned)
        self.own[self._running[-1]] += cost
        return result


class _ComplexByDefinition(TorchFunctionMode):
    """Runs complex convolutions as four real ones; torch runs three and more sums, and would count three."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func not in CONVOLVING:
            return func(*args, **options)
        x, weight, bias = (args[i] if i < len(args) else options.pop(name, None) for i, name in enumerate(_OPERANDS))
        if not (x.is_complex() and weight.is_complex()):
            return func(*args, **(kwargs or {}))

        def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            result: Tensor = func(x, weight, bias, *args[3:], **options)
            return result

        biases = (None, None) if bias is None else (bias.real, bias.imag)
        real = convolve(x.real, weight.real, biases[0]) - convolve(x.imag, weight.imag)
        return torch.complex(real, convolve(x.real, weight.imag, biases[1]) + convolve(x.imag, weight.real))


class _OneModule(contextlib.nullcontext[None]):
    """Replaces the counter's tracker of modules, which fails if the input of a module is a parameter."""

    parents = frozenset({"Global"})


@contextlib.contextmanager
def counting(running: Sequence[str] = ("",), *, weights: Set[int] = frozenset()) -> Iterator[Census]:
    """Count the operators of the body.

    Args:
        running: a stack whose last entry is the path of the running module.
        weights: storages of the weights, to recognise products with weights.
    """
    counter: Any = FlopCounterMode(display=False, custom_mapping=product_formulas())
    counter.mod_tracker = _OneModule()
    census = Census(counter.flop_registry, running, weights)
    with torch.no_grad(), _ComplexByDefinition(), census, counter:  # the counter, innermost, decomposes operators
        yield census
    assert 2 * sum(cost.macs for cost in census.own.values()) == counter.get_total_flops()


@contextlib.contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """Yield a stack whose last entry is the path of the running module; one outside ``model`` counts as its caller."""
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
    """Classify a product: with a weight, even through views, or of two activations."""
    if name in CONVOLUTIONS:
        return "convolution"
    operands = (t for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim > 1)
    return "projection" if any(t.untyped_storage()._cdata in weights for t in operands) else "attention"
