"""Map the official state dict of a model family to ours; each model class defines its layout next to its modules."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointLayout:
    """The differences between an official state dict and ours: the class attribute ``checkpoint_layout`` of a model.

    A model without the attribute uses the official keys. Shapes that differ only in dimensions of size 1 (a 1×1
    convolution stored where we have a linear map) need no entry. A module that holds a parameter tied to positions, at
    any depth, has a method ``fit_stored(name, stored)``. It returns the stored tensor, at its own size or the module's,
    and the parameter takes that size. It returns None for any other key, or raises ValueError.

    Attributes:
        renames: (pattern, replacement) for ``re.sub``, applied in order to every key; none may match a key of ours.
        derived: ``re.search`` patterns for buffers that the model computes from the input size; they are dropped.
    """

    renames: tuple[tuple[str, str], ...] = ()
    derived: tuple[str, ...] = ()

    def translate(self, key: str) -> str | None:
        """Translate an official key to ours; None for a buffer that the model computes itself."""
        if any(re.search(pattern, key) for pattern in self.derived):
            return None
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key
