"""One step of training as it is timed and forecast: forward, cross-entropy, backward, AdamW; checkpointed blocks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sema_bench.errors import ProbeError

_LEARNING_RATE = 1e-5  # small: every step sees the same batch, and the numbers must stay numbers


class TrainingStep:
    """Trains ``model`` on one batch, step by step; parameters, gradients and moments in the model's own dtype.

    Between two steps no gradient is alive, as in any loop that sets them to None.

    Args:
        model: what is called; compiled or not.
        batch: (B, C, H, W).
    """

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self._model = model
        self._batch = batch
        self._labels: Tensor | None = None
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def __call__(self) -> Tensor:
        """Take one step; returns the logits (B, classes)."""
        with torch.enable_grad():
            logits: Tensor = self._model(self._batch)
            if self._labels is None:
                self._labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
            F.cross_entropy(logits.float(), self._labels).backward()
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
        return logits.detach()

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state; 0 before the first step."""
        states: list[dict[str, Any]] = list(self._optimiser.state.values())
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def checkpoint_blocks(model: nn.Module) -> str:
    """Make ``model`` drop the activations inside its blocks and compute them again in the backward pass.

    A block is a module of the model that stands beside another of its class in a list or sequence, the innermost such.
    Returns the blocks in words, such as ``"18 × Block"``. Batch norms inside them see every batch twice.

    Raises:
        ProbeError: there are no blocks.
    """
    blocks = [block for block in _repeated(model) if not any(True for _ in _repeated(block))]
    if not blocks:
        raise ProbeError("activation checkpointing found no repeated blocks in this model")
    for block in blocks:
        _recompute(block)
    names = Counter(type(block).__name__ for block in blocks)
    return ", ".join(f"{count} × {name}" for name, count in names.most_common())


def _repeated(model: nn.Module) -> list[nn.Module]:
    """Return the modules below ``model`` that stand in a list beside another of their class; bare layers are none."""
    found: dict[int, nn.Module] = {}
    for container in model.modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        kinds = Counter(type(child) for child in container)
        for child in container:
            own = not type(child).__module__.startswith("torch.") and any(True for _ in child.children())
            if own and kinds[type(child)] > 1:
                found[id(child)] = child
    return list(found.values())


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def run(*arguments: Any, **options: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    vars(block)["forward"] = run
