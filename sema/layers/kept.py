"""Tables that depend on the size of the input and on a parameter, kept between calls while nothing is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sema.macs import Grid


class KeptTable:
    """Keeps what was made last from a parameter for a grid; makes it anew whenever it could differ or be recorded.

    Nothing is kept while training, while gradients are on, or while a compiler or a tracer looks: they bring tensors
    that must not outlive them. Official code makes such tables once, for its one size.
    """

    def __init__(self) -> None:
        self._last: tuple[object, Tensor] | None = None

    def __call__(self, source: Tensor, grid: Grid, make: Callable[[Grid], Tensor], *, training: bool) -> Tensor:
        """Return ``make(grid)``, which depends on ``grid`` and on the values of ``source`` alone."""
        if training or torch.is_grad_enabled() or torch.compiler.is_compiling() or source.is_inference():
            return make(grid)
        if type(source.data) is not Tensor:
            return make(grid)
        inference = torch.is_inference_mode_enabled()
        key = (grid, source.data_ptr(), source._version, source.shape, source.dtype, source.device, inference)
        if self._last is None or self._last[0] != key:
            self._last = (key, make(grid))
        return self._last[1]
