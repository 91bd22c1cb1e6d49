"""sema: vision attentions and backbones in PyTorch, each exact, each at any H×W.

``create_attention`` and ``create_model`` build by name; torch is imported on first use.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sema.attention import ATTENTIONS
from sema.model_name import OF_THE_BACKBONE, parse_model_name
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema.registry import UnknownNameError

if TYPE_CHECKING:
    from torch import nn

    from sema.attention.base import Attention
    from sema.checkpoint_files import CheckpointError
    from sema.checkpoints import load_checkpoint, save_checkpoint
    from sema.inference.optimize import UnsupportedError, optimize_for_inference
    from sema.timm_models import register_with_timm

__all__ = [
    "CheckpointError",
    "UnknownNameError",
    "UnsupportedError",
    "create_attention",
    "create_model",
    "list_attentions",
    "list_models",
    "load_checkpoint",
    "optimize_for_inference",
    "register_with_timm",
    "save_checkpoint",
]

#: Names whose module imports torch: it is loaded when one of them is first asked for.
_LAZY = {
    "CheckpointError": "sema.checkpoint_files",
    **dict.fromkeys(("load_checkpoint", "save_checkpoint"), "sema.checkpoints"),
    **dict.fromkeys(("UnsupportedError", "optimize_for_inference"), "sema.inference.optimize"),
    "register_with_timm": "sema.timm_models",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sema' has no attribute {name!r}")


def list_attentions() -> list[str]:
    """Return the names that ``create_attention`` takes."""
    return list(ATTENTIONS)


def list_models() -> list[str]:
    """Return the names that ``create_model`` takes."""
    return list(MODELS)


def create_attention(name: str, *, dim: int, num_heads: int, **options: Any) -> Attention:
    """Build one attention, (B, H, W, C) → (B, H, W, C).

    Args:
        name: an entry of ``list_attentions()``.
        dim: channels C.
        num_heads: must divide ``dim``.
        options: keyword arguments that the attention's class declares (``window_size=7``, ``lepe=False``, …).

    Raises:
        UnknownNameError: no attention of that name.
        TypeError: an option that this attention does not declare.
        ValueError: an option with a value that is not possible.
    """
    build = ATTENTIONS.load(name)
    _check_options(f"attention {name!r}", build, options, fixed=("dim", "num_heads"))
    return build(dim, num_heads, **options)  # type: ignore[no-any-return]


def create_model(
    name: str,
    *,
    attention: str | None = None,
    attention_options: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    **options: Any,
) -> nn.Module:
    """Build one model, (B, in_chans, H, W) → (B, num_classes).

    Args:
        name: an entry of ``list_models()``, or a name as tables write it: ``sema_tiny[linear]``.
        attention: attention to put in place of the model's own; the rest of the network stays as it is.
        attention_options: options for the attention, as ``create_attention`` takes them.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        options: keyword arguments that the model declares (``drop_path_rate``, …).

    Raises:
        UnknownNameError: no model or attention of that name.
        TypeError: an option that this model or attention does not declare.
        ValueError: the model's attention cannot be replaced, or an option has an impossible value.
    """
    parsed = parse_model_name(name)
    if parsed.attention and attention:
        raise ValueError(f"{name!r} names an attention already; drop attention={attention!r} or the brackets")
    attention = attention or parsed.attention
    build = MODELS.load(parsed.model)
    if parsed.model in ATTENTION_SWAPPABLE:
        named = dict(parsed.options)
        options = {**{key: named.pop(key) for key in OF_THE_BACKBONE if key in named}, **options}
        options["attention_options"] = {**named, **(attention_options or {})}
        if attention:
            options["attention"] = ATTENTIONS.check(attention)
    elif attention or attention_options:
        raise ValueError(f"the attention of {parsed.model!r} cannot be replaced or configured")
    else:
        options = {**parsed.options, **options}
    _check_options(f"model {parsed.model!r}", build, options)
    return build(num_classes=num_classes, in_chans=in_chans, **options)  # type: ignore[no-any-return]


def _check_options(owner: str, build: Any, options: Mapping[str, Any], fixed: tuple[str, ...] = ()) -> None:
    declared = [p for p in inspect.signature(build).parameters if p not in fixed]
    unknown = [key for key in options if key not in declared]
    if unknown:
        raise TypeError(f"{owner} has no option {unknown[0]!r}; declared: {', '.join(declared) or 'none'}")
