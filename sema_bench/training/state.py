"""The state of a training between two steps, as tensors of a checkpoint; timm makes its optimizer and schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import Tensor, nn

from sema_bench.spec.recipe import Recipe


class Scaler(NativeScaler):
    """timm's loss scaler, enabled only in float16."""

    def __init__(self, device: torch.device, amp: str) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "float16")

    @property
    def scale(self) -> float:
        """Factor of the loss; it falls when a step is skipped because its gradients overflow."""
        return float(self._scaler.get_scale())


@dataclass
class State:
    """The network, not its wrapper, with its AdamW, gradient scaler and moving average."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Scaler
    average: ModelEmaV3 | None

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average.{key}": value for key, value in self.average.module.state_dict().items()}
        for name, parameter in trainable(self.model):
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, Any]) -> None:
        """Load the ``tensors`` of a checkpoint; raise KeyError or RuntimeError for those of another network."""
        self.model.load_state_dict(_below("model.", tensors))
        if self.average:
            self.average.module.load_state_dict(_below("average.", tensors))
        for name, parameter in trainable(self.model):
            state = _below(f"optimizer.{name}.", tensors)
            if state:  # a parameter without one never had a gradient
                self.optimizer.state[parameter] = {
                    key: value if key == "step" else torch.empty_like(parameter).copy_(value)
                    for key, value in state.items()
                }
        self.scaler.load_state_dict(dict(scaler))


class Schedule:
    """The learning rate of each step: linear warm-up, ``lr``, half a cosine to ``min_lr``."""

    def __init__(self, optimizer: torch.optim.Optimizer, recipe: Recipe, *, steps_per_epoch: int) -> None:
        self._groups = optimizer.param_groups
        self._warmup = round(recipe.warmup * steps_per_epoch)
        rest = recipe.epochs * steps_per_epoch - self._warmup
        falling = max(1, round(rest * recipe.decay_share))
        self._held = rest - falling
        self._cosine, _ = create_scheduler_v2(  # its epochs are our steps
            optimizer,
            "cosine",
            num_epochs=falling,
            min_lr=recipe.min_lr,
            warmup_lr=recipe.warmup_lr,
            warmup_epochs=self._warmup,
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=1,
        )

    def set(self, step: int) -> float:
        """Set the learning rate of ``step``, counted from 0, and return it."""
        self._cosine.step_update(step if step < self._warmup else max(self._warmup, step - self._held))
        return float(self._groups[0]["lr"])


def new_state(model: nn.Module, recipe: Recipe, device: torch.device) -> State:
    """Begin a training of ``model``."""
    groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=_spared(model))
    average = None
    if recipe.ema:
        # timm iterates over the state dict, which holds a tied weight twice, and would average it twice
        tied = len([*model.named_parameters(remove_duplicate=False)]) > len([*model.parameters()])
        average = ModelEmaV3(model, recipe.ema_decay, exclude_buffers=tied)
    optimizer = create_optimizer_v2(groups, opt="adamw", lr=recipe.lr, betas=recipe.betas)
    return State(model, optimizer, Scaler(device, recipe.amp), average)


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters to train."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _spared(model: nn.Module) -> set[str]:
    """Name the parameters without weight decay, besides all vectors, which timm spares.

    These are temperatures, tokens, position embeddings, tables of relative positions and the decay rates of state-space
    models, and what the model's ``no_weight_decay()`` names: all but the weights of products.
    """
    named = getattr(model, "no_weight_decay", None)
    others = {name for name, _ in model.named_parameters() if not name.endswith("weight")}
    return others | set(named() if callable(named) else ())


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
