"""Map the official state dict of a model family onto ours; each model class states its layout beside its modules."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointLayout:
    """The differences between an official state dict and ours, as the class attribute ``checkpoint_layout`` of a model.

    A model without the attribute has the official keys. Shapes that differ by dimensions of size 1 alone (a 1×1
    convolution stored where we hold a linear map) need no entry. A parameter tied to positions is fitted by a method
    ``fit_stored(name, stored)`` of a module that holds it, at any depth: it returns the stored tensor, in its own size
    or in the module's, and the parameter takes that size. It returns None for any other key, or raises ValueError.

    Attributes:
        renames: (pattern, replacement) of ``re.sub``, applied in order to every key; none may match a key of ours.
        derived: patterns of ``re.search`` for buffers that the model makes from the live size; they are dropped.
    """

    renames: tuple[tuple[str, str], ...] = ()
    derived: tuple[str, ...] = ()

    def translate(self, key: str) -> str | None:
        """Turn an official key into ours, None for a buffer that the model derives itself."""
        if any(re.search(pattern, key) for pattern in self.derived):
            return None
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        return key
