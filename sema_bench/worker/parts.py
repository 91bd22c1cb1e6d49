"""The parts of a detector or segmenter, which run one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

#: Submodules of a detector or a segmenter, in the order in which they run.
PARTS = ("backbone", "neck", "head")


@contextmanager
def noting_parts(model: nn.Module, parts: Sequence[str], note: Callable[[], None]) -> Iterator[None]:
    """Call ``note`` as each of ``parts``, submodules of ``model``, begins."""

    def begins(*_: object) -> None:
        note()

    hooks = [model.get_submodule(part).register_forward_pre_hook(begins) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
