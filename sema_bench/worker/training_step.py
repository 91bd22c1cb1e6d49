"""Take one training step, as it is timed and forecast: forward, cross-entropy, backward, AdamW."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from sema_bench.errors import ProbeError

_LEARNING_RATE = 1e-5  # small: every step sees the same batch, and the numbers must stay finite


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
                labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
                # every pixel has the class of its image
                self._labels = labels.view(-1, *[1] * (logits.ndim - 2)).expand(len(logits), *logits.shape[2:])
            F.cross_entropy(logits.float(), self._labels).backward()
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)
        return logits.detach()

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state; 0 before the first step."""
        states: list[dict[str, Any]] = list(self._optimiser.state.values())
        return sum(value.nbytes for state in states for value in state.values() if isinstance(value, Tensor))


def checkpoint_blocks(model: nn.Module) -> None:
    """Make ``model`` drop the activations inside its blocks and recompute them in the backward pass.

    Blocks are the innermost modules beside another of their class in a list or sequence; raise ProbeError if there are
    none. Batch norms inside them count every batch once: the second pass leaves their running statistics alone.
    """
    blocks = [block for block in _repeated(model) if not _repeated(block)]
    if not blocks:
        raise ProbeError("activation checkpointing found no repeated blocks in this model")
    for block in blocks:
        vars(block)["forward"] = functools.partial(_run_checkpointed, block, block.forward)


def _run_checkpointed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    """Run ``forward`` of ``block`` under activation checkpointing."""
    if torch.compiler.is_compiling():  # a compiled graph updates statistics once, and takes no context of ours
        return checkpoint(forward, *inputs, use_reentrant=False)
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _on_copied_statistics(block)),  # of the first and second pass
    )


@contextlib.contextmanager
def _on_copied_statistics(block: nn.Module) -> Iterator[None]:
    """Let the norms in ``block`` update copies of their running statistics.

    The statistics cannot be left out instead: what the second pass saves for the backward pass must match the first.
    """
    norms = [module for module in block.modules() if isinstance(module, _NormBase)]
    statistics = [(norm, dict(norm.named_buffers(recurse=False))) for norm in norms]
    for norm, buffers in statistics:
        norm._buffers.update({name: value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in statistics:
            norm._buffers.update(buffers)


def _repeated(model: nn.Module) -> set[nn.Module]:
    """Find the modules below ``model`` that are in a list beside another of their class, except bare layers."""
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
