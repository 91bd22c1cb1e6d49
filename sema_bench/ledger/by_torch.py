"""Costs by module as torch's FlopCounterMode sees them, and every operator beside it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sema_bench.ledger.costs import Costs
from sema_bench.ledger.operators import (
    CONVOLUTIONS,
    MOVEMENT,
    SCANS,
    elementwise_flops,
    is_known,
    missing_formulas,
    scan_flops,
)


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
    own: defaultdict[str, Costs] = defaultdict(Costs)
    uncovered: set[str] = set()
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    counter = FlopCounterMode(display=False, custom_mapping=missing_formulas())

    class Census(TorchDispatchMode):
        """Sees every operator as the counter has decomposed it, and enters its cost under the running module."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            packet = func._overloadpacket
            name = packet.__name__
            if packet in counter.flop_registry:
                macs = counter.flop_registry[packet](*args, **(kwargs or {}), out_val=result) // 2
                cost = Costs(**{_kind(name, args, weights): macs})
            else:
                if not is_known(func.namespace, name):
                    uncovered.add(name if func.namespace == "aten" else f"{func.namespace}::{name}")
                    return result
                if name in MOVEMENT:
                    return result
                operands = [t for t in tree_leaves((args, result)) if isinstance(t, Tensor)]
                normalisation, elementwise = elementwise_flops(name, max((t.numel() for t in operands), default=0))
                scanned = scan_flops(args[1].shape, args[2].shape) if name in SCANS else 0
                cost = Costs(0, 0, 0, normalisation, elementwise, scanned)
            own[running[-1]] += cost
            return result

    # Inside the counter, so that the census sees what the counter has decomposed.
    with torch.no_grad(), running_modules(model) as running, Census(), counter:  # type: ignore[no-untyped-call]
        model(image)
    costs = {path: Costs() for path, _ in model.named_modules()}
    for path, cost in own.items():
        for ancestor in ancestors(path):
            costs[ancestor] += cost
    assert 2 * costs[""].macs == counter.get_total_flops()
    return TorchCount(costs, uncovered)


def ancestors(path: str) -> Iterator[str]:
    """Yield ``path``, its parents, and "" last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


@contextmanager
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


def _kind(name: str, args: Any, weights: set[int]) -> str:
    """Tell a product with a weight from a product of two activations, whatever views lie between."""
    if name in CONVOLUTIONS:
        return "convolution"
    operands = (t for t in tree_leaves(args) if isinstance(t, Tensor) and t.ndim > 1)
    return "projection" if any(t.untyped_storage()._cdata in weights for t in operands) else "attention"
