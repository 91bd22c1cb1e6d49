"""sema: vision attentions and backbones in PyTorch, exact and at any H×W.

``create_attention`` and ``create_model`` build by name; torch is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sema.attention import ATTENTIONS
from sema.build import create_attention, create_model
from sema.models import MODELS
from sema.registry import UnknownNameError

if TYPE_CHECKING:
    from sema.checkpoint_files import CheckpointError
    from sema.checkpoints import load_checkpoint, save_checkpoint
    from sema.feature_maps import backbone
    from sema.inference.forms import UnsupportedError
    from sema.inference.optimize import optimize_for_inference
    from sema.timm_models import register_with_timm

__all__ = [
    "CheckpointError",
    "UnknownNameError",
    "UnsupportedError",
    "backbone",
    "create_attention",
    "create_model",
    "list_attentions",
    "list_models",
    "load_checkpoint",
    "optimize_for_inference",
    "register_with_timm",
    "save_checkpoint",
]

#: Names whose modules import torch; these are loaded on first use.
_LAZY = {
    "backbone": "sema.feature_maps",
    "CheckpointError": "sema.checkpoint_files",
    **dict.fromkeys(("load_checkpoint", "save_checkpoint"), "sema.checkpoints"),
    "UnsupportedError": "sema.inference.forms",
    "optimize_for_inference": "sema.inference.optimize",
    "register_with_timm": "sema.timm_models",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sema' has no attribute {name!r}")


def list_attentions() -> list[str]:
    """List the names that ``create_attention`` takes."""
    return list(ATTENTIONS)


def list_models() -> list[str]:
    """List the names that ``create_model`` takes."""
    return list(MODELS)
