"""What a training is made of between two steps, as tensors of one checkpoint, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sema_bench.training.average import MovingAverage

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class State:
    """Model, optimiser and what belongs to them.

    Attributes:
        model: the network itself, never a wrapper around it.
        optimiser: AdamW over its parameters.
        scaler: of gradients in float16.
        average: moving average of the weights, if there is one.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under names of their own."""
        found = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average:
            found |= {f"average.{key}": value for key, value in self.average.state.items()}
        for name, parameter in trainable(self.model):
            state = self.optimiser.state.get(parameter, {})
            found |= {f"optimiser.{key}.{name}": state[key] for key in _MOMENTS if key in state}
        return found

    def restore(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
        """Take up what ``tensors`` gave.

        Raises:
            KeyError, RuntimeError: they are of another network.
        """
        self.model.load_state_dict(_below("model.", tensors))
        if self.average:
            like = self.average.state
            self.average.state = {key: value.to(like[key]) for key, value in _below("average.", tensors).items()}
        for name, parameter in trainable(self.model):
            if f"optimiser.step.{name}" not in tensors:  # it has never had a gradient
                continue
            state = {key: tensors[f"optimiser.{key}.{name}"] for key in _MOMENTS}
            self.optimiser.state[parameter] = {
                key: value if key == "step" else torch.empty_like(parameter).copy_(value)
                for key, value in state.items()
            }
        self.scaler.load_state_dict(dict(scaler))


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter of all that is trained."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those with weight decay, the matrices and kernels of products, and all others.

    Biases, norms, scales, temperatures, tokens, position embeddings, tables of relative positions and the decay rates
    of state-space models have none, whatever their shape, nor has what the model's ``no_weight_decay()`` names.
    """
    named = getattr(model, "no_weight_decay", None)
    spared = set(named()) if callable(named) else set()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trainable(model):
        groups[parameter.ndim > 1 and name.endswith("weight") and name not in spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
