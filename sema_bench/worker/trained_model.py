"""Models with weights: built for a number of classes, loaded from a checkpoint, and named by both."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import sema
from sema.checkpoints import LoadReport
from sema.models import MODELS
from sema_bench.errors import ProbeError, UsageError
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.weights_source import other_model, read_about
from sema_bench.worker.foreign_model import build_foreign, library_adapter

_DROPPED = "weights_dropped"


@dataclass(frozen=True)
class Weights:
    """A checkpoint of a model.

    Attributes:
        path: the file.
        classes: names of its classes, None where it does not tell.
        about: what it says of itself.
    """

    path: Path
    classes: tuple[str, ...] | None
    about: dict[str, Any]


def read_weights(path: Path) -> Weights:
    """Return what a checkpoint says of itself, before it is loaded.

    Raises:
        UsageError: it cannot be read.
    """
    about = read_about(path)
    classes = about.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return Weights(path, tuple(classes) if named and classes is not None else None, about)


def build_model(name: str, size: tuple[int, int], *, classes: int | None, drop_path: float | None = None) -> nn.Module:
    """Build the model ``name`` for images of ``size``.

    Args:
        name: as in ``--models``.
        size: (H, W).
        classes: outputs of the classifier; None: the model's own number.
        drop_path: stochastic depth of the last block; None: the model's own.

    Raises:
        UsageError: an option that this model does not have.
        ProbeError, SizeNotSupportedError: code that is not ours failed.
    """
    source = parse_source(name)
    if source.kind != "registry":
        if drop_path is not None:
            raise UsageError(f"drop_path is an option of our models; {name} sets its own")
        return build_foreign(source, Resolution(*size), classes=classes)
    declared = inspect.signature(MODELS.load(name.partition("[")[0])).parameters
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if drop_path is not None:
        if "drop_path_rate" not in declared:
            raise UsageError(f"{name} has no stochastic depth; drop drop_path from the recipe")
        options["drop_path_rate"] = drop_path
    if "img_size" in declared:
        options["img_size"] = size
    return sema.create_model(name, **options)


def build_with_weights(name: str, size: tuple[int, int], weights: Weights) -> nn.Module:
    """Build the model ``name`` for images of ``size`` and load a checkpoint into it, with the classes that it has.

    Raises:
        ProbeError: it is of another model, damaged, or holds code.
    """
    if wrong := other_model(name, weights.path, weights.about):
        raise ProbeError(wrong)
    classes = len(weights.classes) if weights.classes else None
    try:
        try:
            model, report = _load(name, size, weights, classes)
        except sema.CheckpointError as problem:
            if problem.classes is None or weights.classes:
                raise
            classes = problem.classes
            model, report = _load(name, size, weights, classes)
    except sema.CheckpointError as problem:
        if classes is not None and problem.classes == classes:
            raise ProbeError(
                f"{weights.path} has {classes} classes and {name} does not build that many; "
                "give the function that builds it a parameter num_classes"
            ) from None
        raise ProbeError(str(problem)) from None
    except FileNotFoundError as problem:
        raise ProbeError(str(problem)) from None
    vars(model)[_DROPPED] = report.dropped
    return model


def dropped_weights(model: nn.Module) -> dict[str, list[str]]:
    """Return ``{"weights_dropped": …}`` for a record where a checkpoint held tensors that are not the model's."""
    dropped = getattr(model, _DROPPED, ())
    return {_DROPPED: list(dropped)} if dropped else {}


def _load(name: str, size: tuple[int, int], weights: Weights, classes: int | None) -> tuple[nn.Module, LoadReport]:
    model = build_model(name, size, classes=classes)
    adapt = library_adapter(parse_source(name), model, size)
    return model, sema.load_checkpoint(model, weights.path, adapt=adapt)
