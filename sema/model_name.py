"""Model names as command lines write them: ``sema_tiny``, ``sema_tiny[linear]``, ``sema_tiny[sema,window_size=14]``."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sema.attention import ATTENTIONS
from sema.models import ATTENTION_SWAPPABLE, MODELS

OptionValue = int | float | bool | str | None

_NAME = re.compile(r"([A-Za-z0-9_]+)(?:\[([^\[\]]*)\])?")


@dataclass(frozen=True)
class ModelName:
    """A backbone, the attention put into it (None: its own) and options of that attention."""

    model: str
    attention: str | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __str__(self) -> str:
        inner = [self.attention] if self.attention else []
        inner += [f"{key}={value}" for key, value in sorted(self.options.items())]
        return f"{self.model}[{','.join(inner)}]" if inner else self.model


def parse_model_name(text: str) -> ModelName:
    """Return the parts of a model name, with every name in it checked against the registries.

    ``sema_tiny[linear]`` is the backbone ``sema_tiny`` with the attention ``linear`` in place of its own;
    ``key=value`` items set that attention's options. Options without an attention go to the model's own one.

    Raises:
        sema.registry.UnknownNameError: no such model or attention.
        ValueError: the text is not of this form, the model's attention cannot be replaced, or it has no such option.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"bad model name {text!r}; write NAME, NAME[ATTENTION] or NAME[ATTENTION,option=value]")
    model, inner = match[1], match[2]
    MODELS.check(model)
    if inner is None:
        return ModelName(model)
    attention: str | None = None
    options: dict[str, OptionValue] = {}
    for position, item in enumerate(piece.strip() for piece in inner.split(",")):
        key, equals, value = item.partition("=")
        if equals:
            options[key.strip()] = _option_value(value.strip())
        elif position == 0 and item:
            attention = ATTENTIONS.check(item)
        else:
            raise ValueError(f"bad model name {text!r}: {item!r} is not option=value")
    if model not in ATTENTION_SWAPPABLE:
        takers = ", ".join(name for name in MODELS if name in ATTENTION_SWAPPABLE)
        raise ValueError(f"the attention of {model!r} cannot be replaced or configured; models that allow it: {takers}")
    if attention is not None:
        declared = ATTENTIONS.options(attention)
        for key in options:
            if key not in declared:
                raise ValueError(
                    f"attention {attention!r} has no option {key!r}; declared: {', '.join(declared) or 'none'}"
                )
    return ModelName(model, attention, options)


def split_model_names(text: str) -> list[str]:
    """Split a comma-separated list of model names; commas inside brackets belong to the name."""
    return [piece.strip() for piece in re.split(r",(?![^\[]*\])", text) if piece.strip()]


def _option_value(text: str) -> OptionValue:
    words: dict[str, OptionValue] = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text
