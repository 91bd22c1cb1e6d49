"""The inference form of a module, by its type.

A module without a rule of its own stays what it is, with its children in their inference forms; a linear map or a
convolution, wherever it is, becomes a fused one. Where that is not right, ``optimize_for_inference`` refuses the model;
those of the library have rules for what can be said better in their blocks.
"""

from __future__ import annotations

import functools

from torch import nn

from sema.inference.kit import Kit, affine_of

_ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}


@functools.singledispatch
def form_of(module: nn.Module, kit: Kit) -> nn.Module:
    """Return what computes the same as ``module`` in eval mode; ``module`` is taken apart for it."""
    return _with_forms(module, kit)


def _with_forms(module: nn.Module, kit: Kit) -> nn.Module:
    for name, child in module.named_children():
        setattr(module, name, form_of(child, kit))
    return module


@form_of.register
def _(module: nn.Linear, kit: Kit) -> nn.Module:
    return kit.linear(module)


@form_of.register
def _(module: nn.Conv2d, kit: Kit) -> nn.Module:
    return kit.conv(module)


@form_of.register
def _(module: nn.Sequential, kit: Kit) -> nn.Module:
    """Fold batch norms and activations into the convolutions before them."""
    if type(module) is not nn.Sequential:  # it may do something else with its parts
        return _with_forms(module, kit)
    parts: list[nn.Module] = []
    layers = list(module)
    while layers:
        layer = layers.pop(0)
        if not isinstance(layer, nn.Conv2d):
            parts.append(form_of(layer, kit))
            continue
        norm = layers.pop(0) if layers and isinstance(layers[0], nn.BatchNorm2d) else None
        act = _activation(layers[0]) if layers else None
        if act:
            layers.pop(0)
        assert norm is None or isinstance(norm, nn.BatchNorm2d)
        parts.append(kit.conv(layer, act=act or "none", **affine_of(norm)))
    return nn.Sequential(*parts)


def _activation(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else None
    return _ACTIVATIONS.get(type(module))
