"""Exponential moving average of a model's weights, with statistics and other buffers copied as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MovingAverage:
    """The average of the parameters of ``model`` over the steps so far.

    Args:
        model: whose parameters are averaged; also the start.
        decay: weight of what was averaged before. In the first steps it is smaller, (1 + step) / (10 + step), so that
            the random start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.state: dict[str, Tensor] = {key: value.detach().clone() for key, value in model.state_dict().items()}
        self._averaged = {name for name, _ in model.named_parameters(remove_duplicate=False)}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take the parameters after ``step`` (counted from 0) into the average."""
        weight = 1 - min(self._decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if key in self._averaged:
                self.state[key].lerp_(value, weight)
            else:
                self.state[key].copy_(value)
