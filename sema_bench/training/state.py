"""The state of a training between two steps, as tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class MovingAverage:
    """Exponential moving average of the parameters of a model; buffers are copied.

    ``decay`` is the weight of the average so far; the first steps use (1 + step) / (10 + step), to forget the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._averaged = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Add the parameters after ``step`` (counted from 0) to the average."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if key in self._averaged:
                self.state[key].lerp_(value, weight)
            else:
                self.state[key].copy_(value)


@dataclass
class State:
    """The network, not its wrapper, with its AdamW, gradient scaler and moving average."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: MovingAverage | None

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{key}": value for key, value in self.average.state.items()}
        for name, parameter in trainable(self.model):
            state = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{key}.{name}": state[key] for key in _MOMENTS if key in state}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
        """Load the ``tensors`` of a checkpoint; raise KeyError or RuntimeError for those of another network."""
        self.model.load_state_dict(_below("model.", tensors))
        if self.average:
            like = self.average.state
            self.average.state = {key: value.to(like[key]) for key, value in _below("average.", tensors).items()}
        for name, parameter in trainable(self.model):
            if f"optimiser.step.{name}" not in tensors:  # it never had a gradient
                continue
            state = {key: tensors[f"optimiser.{key}.{name}"] for key in _MOMENTS}
            self.optimiser.state[parameter] = {
                key: value if key == "step" else torch.empty_like(parameter).copy_(value)
                for key, value in state.items()
            }
        self.scaler.load_state_dict(dict(scaler))


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters to train."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those with weight decay, the matrices and kernels of products, and all others.

    Biases, norms, scales, temperatures, tokens, position embeddings, tables of relative positions and the decay rates
    of state-space models never decay, nor does what the model's ``no_weight_decay()`` names.
    """
    named = getattr(model, "no_weight_decay", None)
    spared = set(named()) if callable(named) else set()
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trainable(model):
        groups[parameter.ndim > 1 and name.endswith("weight") and name not in spared].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
