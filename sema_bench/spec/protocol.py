"""Protocols of an evaluation: how photographs become the model's input, and what the model needs for it.

Published accuracies of one network at one size differ by protocol. A cell names its protocol, so that figures of two
protocols are never taken for the same measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from sema.model_name import parse_model_name
from sema.models import MODELS
from sema_bench.spec.data_source import DataSpec
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.resolution import Resolution


@dataclass(frozen=True)
class Protocol:
    """One way to prepare test photographs: resize the shorter side, keep the centre; see docs/method/accuracy.md."""

    crop_pct: float | None = None  # share of the resized image that the crop keeps; None: the data's option
    squash: bool = False  # both sides are resized to the resolution, and nothing is cropped
    options: Mapping[str, str] = field(default_factory=dict)  # of the model


#: The first is the default of most models.
PROTOCOLS = {
    "crop": Protocol(),
    "full-crop": Protocol(crop_pct=1.0),
    "squash": Protocol(squash=True),
    "scaled-windows": Protocol(options={"windows": "scaled"}),
}
_DEFAULT = next(iter(PROTOCOLS))


def default_protocol(model: str, sizes: Collection[Resolution], data: DataSpec) -> str:
    """Return the protocol by which the authors of ``model`` test it on photographs.

    CvT squashes images only for its checkpoints at 384, so a test at any other ``sizes`` is of another checkpoint.
    A ``crop_pct`` of the data takes precedence.
    """
    if data.drawn or "crop_pct" in data.options:
        return _DEFAULT
    if model.startswith("xcit_"):
        return "full-crop"
    return "squash" if model.startswith("cvt_") and {*sizes} == {Resolution(384, 384)} else _DEFAULT


def refusal(protocol: str, model: str, data: Collection[DataSpec]) -> str:
    """Say why ``model`` cannot be tested on ``data`` by ``protocol``; "" if it can."""
    if all(spec.drawn for spec in data):
        return f"protocol {protocol} prepares photographs, and scenes are drawn at their size; drop it"
    if protocol != _DEFAULT and any("crop_pct" in spec.options for spec in data):
        return f"protocol {protocol} sets the crop, and so does crop_pct of the data; drop one"
    for key in PROTOCOLS[protocol].options:
        if key not in _free_options(model):
            able = ", ".join(name for name in MODELS if key in _free_options(name)) or "none of this release"
            return f"protocol {protocol} sets {key}, which {model} does not accept; models that do: {able}"
    return ""


def network_name(model: str, protocol: str) -> str:
    """Name the network that ``protocol`` tests: ``model`` with the options that it needs."""
    options = PROTOCOLS[protocol].options
    if not options:
        return model
    parsed = parse_model_name(model)
    return str(dataclasses.replace(parsed, options={**parsed.options, **options}))


def _free_options(model: str) -> set[str]:
    """Return the options of the backbone that the model name does not set yet."""
    if parse_source(model).kind != "registry":
        return set()
    parsed = parse_model_name(model)
    return {*MODELS.options(parsed.model)} - {*parsed.options}
