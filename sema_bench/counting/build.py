"""The ledger of a model at a size: three sources asked, laid side by side by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from sema_bench.counting.by_formula import count_with_formulas
from sema_bench.counting.by_fvcore import count_with_fvcore
from sema_bench.counting.by_torch import count_with_torch
from sema_bench.counting.costs import Entry, Ledger
from sema_bench.counting.flex import flex_as_dense

if TYPE_CHECKING:
    from torch import nn

_Count = TypeVar("_Count")


def build_ledger(
    model: nn.Module, resolution: tuple[int, int], *, in_chans: int = 3, real: Callable[[], nn.Module] | None = None
) -> Ledger:
    """Count one image of ``resolution`` (H, W) pixels, in float32 and eager mode.

    Args:
        model: on the meta device, so that counting costs no memory and no arithmetic.
        resolution: pixels.
        in_chans: channels of the image.
        real: gives the same model on a CPU, for one whose control flow depends on the values of the image; what such
            a model costs is then counted for one random image, and the ledger says so.
    """
    image = torch.empty(1, in_chans, *resolution, device="meta")
    untraced: dict[str, str] = {}
    notes: list[str] = []
    formulas = count_with_formulas(model, resolution)
    with _unfused_kernels(), flex_as_dense(load=formulas is None) as stood_in:
        by_fvcore = _attempt("fvcore", lambda: count_with_fvcore(model, image), untraced)
        by_torch = _attempt("FlopCounterMode / 2", lambda: count_with_torch(model, image), untraced)
    if stood_in:
        notes.append("flex_attention is counted as dense attention; what its block mask skips is not subtracted")
    if by_torch is None and real is not None:
        sample = torch.randn(1, in_chans, *resolution, generator=torch.Generator().manual_seed(0))
        why = untraced.pop("FlopCounterMode / 2")
        with _unfused_kernels():
            by_torch = _attempt("FlopCounterMode / 2", lambda: count_with_torch(real(), sample), untraced)
        if by_torch is not None:
            notes.append(f"counted for one random image, since shapes alone do not tell what the model does ({why})")
    by_formula = {} if formulas is None else formulas[1]
    entries = {
        path: Entry(
            path=path,
            kind=type(module).__name__,
            params=sum(p.numel() for p in module.parameters() if p.requires_grad),
            params_total=sum(p.numel() for p in module.parameters()),
            formula=by_formula[path].total if path in by_formula else None,
            fvcore=None if by_fvcore is None else by_fvcore.macs[path],
            costs=None if by_torch is None else by_torch.costs[path],
        )
        for path, module in model.named_modules()
    }
    uncovered = (by_fvcore.uncovered if by_fvcore else set()) | (by_torch.uncovered if by_torch else set())
    stated = None if formulas is None else formulas[0].scan_flops
    return Ledger(entries, tuple(sorted(uncovered)), untraced, tuple(notes), stated)


@contextmanager
def _unfused_kernels() -> Iterator[None]:
    """Let recurrent layers and encoder layers run their products one by one: fused kernels of CPUs hide them."""
    before = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before[0])
        torch._C._set_mkldnn_enabled(before[1])


def _attempt(source: str, count: Callable[[], _Count], untraced: dict[str, str]) -> _Count | None:
    """Count, or note why this source cannot: a model may do anything."""
    try:
        return count()
    except Exception as problem:
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        untraced[source] = f"{type(problem).__name__}: {lines[0][:300]}" if lines else type(problem).__name__
        return None
