"""Build attentions and models by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sema.attention import ATTENTIONS
from sema.model_name import OF_THE_BACKBONE, parse_model_name
from sema.models import ATTENTION_SWAPPABLE, MODELS

if TYPE_CHECKING:
    from torch import nn

    from sema.attention.base import Attention


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
        ValueError: an option with an invalid value.
    """
    return ATTENTIONS.build(name, dim, num_heads, **options)


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
        name: an entry of ``list_models()``, or a name with brackets as in tables: ``sema_tiny[linear]``.
        attention: attention that replaces the model's default one; the rest of the network stays the same.
        attention_options: options of the attention, as for ``create_attention``.
        num_classes: outputs of the classifier.
        in_chans: channels of the input image.
        options: keyword arguments that the model declares (``drop_path_rate``, …).

    Raises:
        UnknownNameError: no model or attention of that name.
        TypeError: an option that this model or attention does not declare.
        ValueError: the model's attention cannot be replaced, or an option has an invalid value.
    """
    parsed = parse_model_name(name)
    if parsed.attention and attention:
        raise ValueError(f"{name!r} names an attention already; drop attention={attention!r} or the brackets")
    attention = attention or parsed.attention
    named = dict(parsed.options)
    if parsed.model in ATTENTION_SWAPPABLE:
        backbone = {key: named.pop(key) for key in OF_THE_BACKBONE if key in named}
        options = {**backbone, **options, "attention_options": {**named, **(attention_options or {})}}
        if attention:
            options["attention"] = ATTENTIONS.check(attention)
    elif attention or attention_options:
        raise ValueError(f"the attention of {parsed.model!r} cannot be replaced or configured")
    else:
        options = {**named, **options}
    return MODELS.build(parsed.model, num_classes=num_classes, in_chans=in_chans, **options)
