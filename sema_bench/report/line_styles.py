"""Choose the look of a model's line: its mechanism has one colour and marker in every figure of every run.

Models of one mechanism differ by dashes and markers. Models of unknown mechanism, and attentions that ``COLOURS`` does
not list, get the remaining colours.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from sema.model_name import ModelName, parse_model_name
from sema.models import MODELS
from sema.registry import UnknownNameError

#: Mechanism → colours on white and on black: Okabe and Ito's if they are readable, then darker ones between them.
COLOURS = {
    "sema": ("#0072B2", "#4FB3F6"),
    "softmax": ("#D55E00", "#FF8C42"),
    "linear": ("#009E73", "#2ED3A5"),
    "mila": ("#CC79A7", "#F2A7CF"),
    "window": ("#000000", "#E7E9EC"),
    "sima": ("#E69F00", "#F5C04A"),
    "vmi": ("#56B4E9", "#9BD8FF"),
    "vmamba": ("#882255", "#D9639A"),
    "vim": ("#6A51A3", "#B39DDB"),
    "xca": ("#7A7A00", "#CDCD4A"),
    "focused": ("#8C564B", "#D09A8C"),
    "inline": ("#5B7083", "#A3B8C9"),
    "vit": ("#7F0000", "#FF5A5A"),  # whole models of softmax attention, not softmax put into another backbone
}
MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">", "*", "d", "h", "8")  # no cross: it marks a failure
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
LINE: dict[str, Any] = {
    "linewidth": 1.4,
    "markersize": 5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.4,
    "zorder": 3,
}
#: Start of a model's name → its mechanism.
_FAMILIES = {"deit": "softmax", "cvt": "softmax", "xcit": "xca", "swin": "window", "flatten": "focused"}
_FAMILIES |= {name: name for name in COLOURS}


class Look(NamedTuple):
    """Indices into ``COLOURS``, ``DASHES`` and ``MARKERS``."""

    colour: int
    dashes: int
    marker: int


def looks_of(models: Sequence[str]) -> dict[str, Look]:
    """Choose the looks of a run's ``models``; models that differ only in their head look alike."""
    headless = {model: without_head(model) for model in models}
    colours = {model: _colour_of(model) for model in headless.values()}
    left = itertools.cycle([name for name in COLOURS if name not in colours.values()] or COLOURS)
    looks: dict[str, Look] = {}
    for model, name in colours.items():
        colour = list(COLOURS).index(name if name in COLOURS else next(left))
        rank = sum(look.colour == colour for look in looks.values())
        looks[model] = Look(colour, rank % len(DASHES), (colour + 5 * rank) % len(MARKERS))
    return {model: looks[name] for model, name in headless.items()}


def line_styles(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the matplotlib options for the lines of a run's ``models``."""
    colours = [light for light, _ in COLOURS.values()]
    return {
        model: {**LINE, "color": colours[look.colour], "linestyle": DASHES[look.dashes], "marker": MARKERS[look.marker]}
        for model, look in looks_of(models).items()
    }


def mechanism_of(model: str) -> str:
    """Return the attention in a model's name; "" for a model outside the library."""
    parsed = _parsed(model)
    if parsed is None:
        return ""
    if parsed.attention:
        return parsed.attention
    own = MODELS.options(parsed.model).get("attention")
    if own and isinstance(own.default, str):
        return own.default
    return next((name for beginning, name in _FAMILIES.items() if parsed.model.startswith(beginning)), "")


def _colour_of(model: str) -> str:
    """Return the key of a model's colour in ``COLOURS``, if there is one: its mechanism, or ``vit``."""
    parsed, mechanism = _parsed(model), mechanism_of(model)
    return "vit" if mechanism == "softmax" and parsed and not parsed.attention else mechanism


def head_of(model: str) -> str:
    """Return the pooling head in a model's name; "" without one."""
    parsed = _parsed(model)
    return str(parsed.options.get("head", "")) if parsed else ""


def without_head(model: str) -> str:
    """Return a model's name without its head."""
    parsed = _parsed(model)
    if parsed is None:
        return model
    return str(dataclasses.replace(parsed, options={k: v for k, v in parsed.options.items() if k != "head"}))


def shared_backbone(models: Sequence[str]) -> str:
    """Return the backbone around the attentions of all ``models``; "" if they do not share one."""
    parsed = [_parsed(model) for model in models]
    backbones = {name.model if name and name.attention else "" for name in parsed}
    return backbones.pop() if len(backbones) == 1 else ""


def short_name(model: str, backbone: str) -> str:
    """Return a model's name without its head, and without ``backbone``."""
    name = without_head(model)
    return name.removeprefix(f"{backbone}[").removesuffix("]") if backbone else name


def _parsed(model: str) -> ModelName | None:
    try:
        return parse_model_name(model)
    except (UnknownNameError, ValueError):
        return None
