"""Take one training step, as it is timed and forecast: forward, cross-entropy, backward, AdamW."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sema_bench.errors import ProbeError

_LEARNING_RATE = 1e-5  # small: every step sees the same batch, and the numbers must stay numbers


class TrainingStep:
    """Trains ``model`` on one batch (B, C, H, W); parameters, gradients and moments have the model's own dtype.

    No gradient is alive between two steps, as in any loop that sets them to None.
    """

    def __init__(self, model: nn.Module, batch: Tensor) -> None:
        self._model = model
        self._batch = batch
        self._labels: Tensor | None = None
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, fused=True)

    def __call__(self) -> Tensor:
        """Take one step and return the logits (B, classes)."""
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


def checkpoint_blocks(model: nn.Module) -> None:
    """Make ``model`` drop the activations inside its blocks and recompute them in the backward pass.

    Blocks are the innermost modules beside another of their class in a list or sequence; without any, ProbeError is
    raised. Batch norms inside them see every batch twice.
    """
    blocks = [block for block in _repeated(model) if not _repeated(block)]
    if not blocks:
        raise ProbeError("activation checkpointing found no repeated blocks in this model")
    for block in blocks:
        vars(block)["forward"] = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _repeated(model: nn.Module) -> set[nn.Module]:
    """Find the modules below ``model`` that are in a list beside another of their class, bare layers apart."""
    repeated: set[nn.Module] = set()
    for container in model.modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential):
            continue
        kinds = Counter(type(child) for child in container)
        for child in container:
            own = not type(child).__module__.startswith("torch.") and any(True for _ in child.children())
            if own and kinds[type(child)] > 1:
                repeated.add(child)
    return repeated
