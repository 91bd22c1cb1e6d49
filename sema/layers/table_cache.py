"""Cache the last table that was computed from parameters for a grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from sema.macs import Grid

Table = TypeVar("Table")


class TableCache(Generic[Table]):
    """Cache the last table computed from parameters for a grid; compute a new one if any of these may have changed.

    Nothing is cached in training, with gradients on, or under a compiler or tracer, whose tensors must not outlive
    it. Official code computes such tables once, for its one size.
    """

    def __init__(self) -> None:
        self._last: tuple[object, Table] | None = None

    def __reduce__(self) -> tuple[type[TableCache[Table]], tuple[()]]:
        """Give copies and pickles of a model an empty cache."""
        return type(self), ()

    @staticmethod
    def may_cache(sources: tuple[Tensor, ...], *, training: bool) -> bool:
        """Check whether a table of ``sources`` may outlive this pass."""
        if training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        for x in sources:  # noqa: SIM110 - a generator takes longer, and this runs in every block
            if x.is_inference() or x.is_meta or type(x) not in (Tensor, nn.Parameter):  # is_meta: to be counted
                return False
        return True

    def __call__(
        self, sources: tuple[Tensor, ...], grid: Grid, make: Callable[[Grid], Table], *, training: bool
    ) -> Table:
        """Return ``make(grid)``, which depends only on ``grid`` and the values of ``sources``."""
        return self.cached(sources, grid, make) if self.may_cache(sources, training=training) else make(grid)

    def cached(self, sources: tuple[Tensor, ...], grid: Grid, make: Callable[[Grid], Table]) -> Table:
        """Return ``make(grid)`` or the cached table; the caller has already asked ``may_cache``."""
        versions = [(x.data_ptr(), x._version, x.shape, x.dtype, x.device) for x in sources]
        key = (grid, versions, torch.is_inference_mode_enabled())
        if self._last is None or self._last[0] != key:
            self._last = (key, make(grid))
        return self._last[1]
