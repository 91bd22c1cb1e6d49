"""Tables that depend on the size of the input and on parameters, kept between calls while nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sema.macs import Grid

Table = TypeVar("Table")


class KeptTable(Generic[Table]):
    """Keeps what was made last from some parameters for a grid; makes it anew whenever it could differ or be recorded.

    Nothing is kept while training, while gradients are on, or while a compiler or a tracer looks: they bring tensors
    that must not outlive them. Official code makes such tables once, for its one size.
    """

    def __init__(self) -> None:
        self._last: tuple[object, Table] | None = None

    def __reduce__(self) -> tuple[type[KeptTable[Table]], tuple[()]]:
        """Copies and pickles of a model start with nothing kept."""
        return type(self), ()

    def __call__(
        self, sources: tuple[Tensor, ...], grid: Grid, make: Callable[[Grid], Table], *, training: bool
    ) -> Table:
        """Return ``make(grid)``, which depends on ``grid`` and on the values of ``sources`` alone."""
        if training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make(grid)
        if any(x.is_inference() or x.is_meta or type(x.data) is not Tensor for x in sources):  # is_meta: to be counted
            return make(grid)
        of_sources = [(x.data_ptr(), x._version, x.shape, x.dtype, x.device) for x in sources]
        key = (grid, of_sources, torch.is_inference_mode_enabled())
        if self._last is None or self._last[0] != key:
            self._last = (key, make(grid))
        return self._last[1]
