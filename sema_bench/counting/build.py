"""Build the ledger of a model at a resolution: three sources side by side, module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from sema.macs import Macs
from sema_bench.counting.by_fvcore import count_with_fvcore
from sema_bench.counting.by_torch import count_with_torch
from sema_bench.counting.costs import Entry, Ledger
from sema_bench.counting.flex import flex_as_dense
from sema_bench.errors import first_line

_Count = TypeVar("_Count")


def build_ledger(
    model: nn.Module, resolution: tuple[int, int], *, real: Callable[[], nn.Module] | None = None
) -> Ledger:
    """Count one image of ``resolution`` (H, W) pixels, in float32 and eager mode.

    Args:
        model: (1, 3, H, W) → (1, classes), on the meta device, where counting needs no memory and no arithmetic.
        real: builds the same model on a CPU. A model whose control flow depends on the image is counted there, for one
            random image, and the ledger says so.
    """
    image = torch.empty(1, 3, *resolution, device="meta")
    untraced: dict[str, str] = {}
    notes: list[str] = []
    total, formulas = count_with_formulas(model, resolution) or (None, {})
    with _unfused_kernels(), flex_as_dense(load=total is None) as stood_in:
        by_fvcore = _attempt("fvcore", lambda: count_with_fvcore(model, image), untraced)
        by_torch = _attempt("FlopCounterMode / 2", lambda: count_with_torch(model, image), untraced)
    if stood_in:
        notes.append("flex_attention is counted as dense attention; what its block mask skips is not subtracted")
    if by_torch is None and real is not None:
        sample = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        why = untraced.pop("FlopCounterMode / 2")
        with _unfused_kernels():
            by_torch = _attempt("FlopCounterMode / 2", lambda: count_with_torch(real(), sample), untraced)
        if by_torch is not None:
            notes.append(f"counted for one random image, since shapes alone do not tell what the model does ({why})")
    macs, uncovered = by_fvcore or ({}, set())
    costs, uncovered_by_torch = by_torch or ({}, set())
    entries = {
        path: Entry(
            path=path,
            kind=type(module).__name__,
            params=sum(p.numel() for p in module.parameters() if p.requires_grad),
            params_total=sum(p.numel() for p in module.parameters()),
            formula=formulas[path].total if path in formulas else None,
            fvcore=macs.get(path),
            costs=costs.get(path),
        )
        for path, module in model.named_modules()
    }
    stated = None if total is None else total.scan_flops
    return Ledger(entries, tuple(sorted(uncovered | uncovered_by_torch)), untraced, tuple(notes), stated)


@contextmanager
def _unfused_kernels() -> Iterator[None]:
    """Run the products of recurrent and encoder layers one by one: fused CPU kernels hide them."""
    before = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        torch._C._set_mkldnn_enabled(before[1])


def _attempt(source: str, count: Callable[[], _Count], untraced: dict[str, str]) -> _Count | None:
    """Count, or note why this source cannot; a model may raise anything."""
    try:
        return count()
    except Exception as problem:
        message, kind = first_line(problem), type(problem).__name__
        untraced[source] = kind if message == kind else f"{kind}: {message}"
        return None


def count_with_formulas(model: nn.Module, resolution: tuple[int, int]) -> tuple[Macs, dict[str, Macs]] | None:
    """Count MACs by the model's own formula: the total, and path → MACs of each module with one; None without one."""
    formula = getattr(model, "macs", None)
    if not callable(formula):
        return None
    asked: dict[str, Macs] = {}
    inner = ((path, module) for path, module in model.named_modules() if path)
    others = {path: module for path, module in inner if callable(getattr(module, "macs", None))}
    for path, module in others.items():
        _listen(module, path, asked)
    try:
        total: Macs = formula(resolution)
    finally:
        for module in others.values():
            del module.__dict__["macs"]
    return total, asked | {"": total}


def _listen(module: Any, path: str, asked: dict[str, Macs]) -> None:
    """Shadow ``module.macs`` by a function that records its answer (MACs, or MACs and the next grid)."""
    formula = module.macs

    def noting(*args: Any, **kwargs: Any) -> Any:
        answer = formula(*args, **kwargs)
        macs = answer if isinstance(answer, Macs) else answer[0]
        asked[path] = asked.get(path, Macs()).plus(macs)  # a module that runs twice is asked twice
        return answer

    module.__dict__["macs"] = noting
