"""Lazy modules, ``nn.LazyConv2d`` for example: their parameters have no shape before they see an image."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from sema_bench.errors import ProbeError
from sema_bench.spec.resolution import Resolution


def materialise(model: nn.Module, resolution: Resolution, *, in_chans: int) -> nn.Module:
    """Give lazy modules their shapes: run one image of ``resolution`` through ``model``, in eval mode.

    Raises:
        ProbeError: the forward pass fails, or does not reach every lazy module.
    """
    if not _without_shape(model):
        return model
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, in_chans, *resolution))
    except Exception as problem:
        first = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
        raise ProbeError(
            "lazy modules get their shapes from a forward pass of one image on the CPU, and it raised "
            f"{type(problem).__name__}: {first[:300]}"
        ) from problem
    if missed := _without_shape(model):
        raise ProbeError(
            f"a forward pass in eval mode gives no shape to {', '.join(missed[:5])}{', …' if missed[5:] else ''}; "
            "replace these lazy modules by plain ones, or remove them"
        )
    return model


def _without_shape(model: nn.Module) -> list[str]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]
