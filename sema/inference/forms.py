"""Look up the inference form of a module by its type.

Each form registers itself with ``form_of.register``. A module without one stays, with its children in their
forms; every linear map and convolution becomes a fused one. If that is wrong for a model, ``optimize_for_inference``
sees a different result and refuses the model.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from sema.inference.builder import FormBuilder
from sema.inference.fused import can_fuse
from sema.kernels.layer_norm import layer_norm_native
from sema.kernels.library import REGISTER_CHANNELS
from sema.layers.drop_path import DropPath

_ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}


class UnsupportedError(RuntimeError):
    """The network or the machine has no exact inference form; the message says why in one line."""


@functools.singledispatch
def form_of(module: nn.Module, builder: FormBuilder) -> nn.Module:
    """Build a module that computes the same as ``module`` in eval mode; it may reuse parts of ``module``."""
    return with_forms(module, builder)


def with_forms(module: nn.Module, builder: FormBuilder) -> nn.Module:
    """Replace the children of ``module`` with their forms."""
    for name, child in module.named_children():
        module.set_submodule(name, form_of(child, builder))
    return module


@form_of.register(nn.Linear)
def _linear(module: nn.Linear, builder: FormBuilder) -> nn.Module:
    return builder.linear(module)


@form_of.register(nn.Conv2d)
def _conv(module: nn.Conv2d, builder: FormBuilder) -> nn.Module:
    return builder.conv(module) if can_fuse(module) else module


@form_of.register(DropPath)
def _drop_path(module: DropPath, builder: FormBuilder) -> nn.Module:
    return nn.Identity()


class LayerNormForm(nn.Module):
    """Layer norm of the last dimension on a CPU by the kernel in C++."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        # Not buffers: they stay in float32 when the form is cast.
        self._weight, self._bias = (x.detach().to(torch.float32, copy=True) for x in (norm.weight, norm.bias))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm_native(x, self._weight, self._bias, self.eps)


@form_of.register(nn.LayerNorm)
def _layer_norm(module: nn.LayerNorm, builder: FormBuilder) -> nn.Module:
    is_plain = type(module) is nn.LayerNorm and module.weight is not None and module.bias is not None
    if not is_plain or len(module.normalized_shape) > 1:  # a subclass may do something else
        return module
    if module.normalized_shape[0] % REGISTER_CHANNELS:
        builder.note_torch("layer_norm", f"{module.normalized_shape[0]} channels")
    elif builder.has_native("layer_norm"):
        return LayerNormForm(module)
    return module


@form_of.register(nn.Sequential)
def _sequential(module: nn.Sequential, builder: FormBuilder) -> nn.Module:
    """Fold batch norms and activations into the convolutions before them."""
    if type(module) is not nn.Sequential:  # a subclass may do something else with its parts
        return with_forms(module, builder)
    parts: list[nn.Module] = []
    layers = list(module)
    while layers:
        layer = layers.pop(0)
        if type(layer) is nn.Sequential and layers and _activation(layers[0]):  # it may end in a convolution
            layer = nn.Sequential(*layer, layers.pop(0))
        if not isinstance(layer, nn.Conv2d) or not can_fuse(layer):
            parts.append(form_of(layer, builder))
            continue
        norm = layers[0] if layers else None
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
            layers.pop(0)
        else:  # also a norm by the statistics of the batch: no constant replaces it
            norm = None
        act = _activation(layers[0]) if layers else None
        if act:
            layers.pop(0)
        parts.append(builder.conv(layer, act=act or "none", norm=norm))
    return nn.Sequential(*parts)


def _activation(module: nn.Module) -> str | None:
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else None
    return _ACTIVATIONS.get(type(module))
