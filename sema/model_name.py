"""Model names as typed on a command line: ``sema_tiny``, ``sema_tiny[linear]``, ``sema_tiny[sema,window_size=14]``."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sema.attention import ATTENTIONS
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema.registry import Option

OptionValue = int | float | bool | str | None

_LONGEST = 200
#: Options that a suite sets; they never appear in a model's name.
_SET_BY_THE_SUITE = frozenset({"num_classes", "in_chans"})
#: Options of an attention that the backbone sets for each stage, unless the name sets them.
_SET_BY_THE_BACKBONE = {"num_heads": Option(("int",), None)}
#: Options that a name may set on the backbone around an attention.
OF_THE_BACKBONE = {"head": Option(("str",), "mean")}
_NAME = re.compile(r"([A-Za-z0-9_]+)(?:\[([^\[\]]*)\])?")


@dataclass(frozen=True)
class ModelName:
    """A backbone, its attention (None: the backbone's default) and the options of that attention."""

    model: str
    attention: str | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)

    def __str__(self) -> str:
        inner = [self.attention] if self.attention else []
        inner += [f"{key}={value}" for key, value in sorted(self.options.items())]
        return f"{self.model}[{','.join(inner)}]" if inner else self.model

    @property
    def network(self) -> ModelName:
        """The shortest name of the same network: ``sema_tiny[sema,window_size=7]`` is ``sema_tiny``."""
        declared, own = declared_options(self.model, self.attention)
        given = {key: value for key, value in self.options.items() if value != declared[key].default}
        return ModelName(self.model, None if self.attention == own else self.attention, given)


def parse_model_name(text: str) -> ModelName:
    """Split a model name into its parts and check every name in it against the registries.

    ``sema_tiny[linear]`` is ``sema_tiny`` with its attention replaced by ``linear``;
    ``key=value`` items set that attention's options. Without an attention, options go to the model's default one, or
    to the model itself if its attention cannot be replaced: ``vmamba_tiny_s1l8[scan=triton]``.

    Raises:
        sema.registry.UnknownNameError: no such model or attention.
        ValueError: the text is malformed, the model's attention cannot be replaced, or there is no such option.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None or not text.isprintable() or len(text) > _LONGEST:
        shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
        raise ValueError(f"bad model name {shown!r}; write NAME, NAME[ATTENTION] or NAME[ATTENTION,option=value]")
    model, inner = match[1], match[2]
    MODELS.check(model)
    if inner is None:
        return ModelName(model)
    attention: str | None = None
    given: dict[str, str] = {}
    for position, item in enumerate(piece.strip() for piece in inner.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if equals and key in given:
            raise ValueError(f"bad model name {text!r}: option {key!r} is given twice")
        if equals:
            given[key] = value
        elif position == 0 and item:
            attention = ATTENTIONS.check(item)
        else:
            raise ValueError(f"bad model name {text!r}: {item!r} is not option=value")
    if attention and model not in ATTENTION_SWAPPABLE:
        takers = ", ".join(name for name in MODELS if name in ATTENTION_SWAPPABLE)
        raise ValueError(f"the attention of {model!r} cannot be replaced; models that allow it: {takers}")
    declared, own = declared_options(model, attention)
    owner = f"attention {attention or own!r}" if own else f"model {model!r}"
    values = {key: _option_value(owner, declared, key, value) for key, value in given.items()}
    return ModelName(model, attention, values)


def declared_options(model: str, attention: str | None) -> tuple[dict[str, Option], str | None]:
    """Return the options that a name may set, and the model's default attention (None: it cannot be replaced)."""
    if model not in ATTENTION_SWAPPABLE:
        return {key: option for key, option in MODELS.options(model).items() if key not in _SET_BY_THE_SUITE}, None
    own = str(MODELS.options(model)["attention"].default)
    return {**ATTENTIONS.options(attention or own), **_SET_BY_THE_BACKBONE, **OF_THE_BACKBONE}, own


def _option_value(owner: str, declared: Mapping[str, Option], key: str, text: str) -> OptionValue:
    """Convert ``text`` to a type that the option ``key`` declares."""
    if key not in declared:
        raise ValueError(f"{owner} has no option {key!r}; declared: {', '.join(declared) or 'none'}")
    types, word = declared[key].types, text.lower()
    with contextlib.suppress(ValueError):
        if "bool" in types and word in ("true", "false"):
            return word == "true"
        if "None" in types and word == "none":
            return None
        if "int" in types:
            return int(text)
        if "float" in types and math.isfinite(float(text)):
            return float(text)
    if "str" in types:
        return text
    raise ValueError(f"option {key!r} of {owner} takes {' or '.join(types)}; got {text!r}")
