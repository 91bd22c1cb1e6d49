"""Multiply-accumulates by module from formulas: what each module of ours says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sema.macs import Macs

if TYPE_CHECKING:
    from torch import nn


def count_with_formulas(model: nn.Module, resolution: tuple[int, int]) -> tuple[Macs, dict[str, Macs]] | None:
    """Ask ``model`` for its MACs on one image of ``resolution`` and note what its modules answer on the way.

    Returns:
        The total, and path → MACs of every module that was asked; None for a model without a formula.
    """
    if not callable(getattr(model, "macs", None)):
        return None
    asked: dict[str, Macs] = {}
    listened: list[nn.Module] = []
    for path, module in model.named_modules():
        if path and callable(getattr(module, "macs", None)):
            _listen(module, path, asked)
            listened.append(module)
    try:
        total: Macs = model.macs(resolution)  # type: ignore[operator]
    finally:
        for module in listened:
            del module.__dict__["macs"]
    return total, asked | {"": total}


def _listen(module: Any, path: str, asked: dict[str, Macs]) -> None:
    """Shadow ``module.macs`` by one that notes its answer (MACs, or MACs and the grid that follows)."""
    formula = module.macs

    def noting(*args: Any, **kwargs: Any) -> Any:
        answer = formula(*args, **kwargs)
        macs = answer if isinstance(answer, Macs) else answer[0]
        asked[path] = asked.get(path, Macs()).plus(macs)  # a module that runs twice is asked twice
        return answer

    module.__dict__["macs"] = noting
