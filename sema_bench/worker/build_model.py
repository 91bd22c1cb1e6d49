"""Build a model by name: one of ours, or from a file, an installed package, timm or torchvision.

A model is built for an image size and for the number of classes in its checkpoint; then it loads the weights.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import sema
from sema.checkpoints import LoadReport
from sema.models import MODELS
from sema_bench.errors import ProbeError, UsageError, first_line
from sema_bench.spec.model_source import ENTRY_POINTS, ModelSource, parse_source
from sema_bench.spec.protocol import network_name
from sema_bench.spec.weights_source import other_model, read_about
from sema_bench.worker import yardstick_network
from sema_bench.worker.model_imports import MODULE_PREFIX, noting_files

IN_CHANS = 3
#: Errors that models raise at a size that they do not support.
_SIZE_ERRORS = (AssertionError, ValueError, RuntimeError, IndexError, TypeError)
#: (H, W) of a trial build.
_TRIAL_SIZE = (224, 224)
_DROPPED = "weights_dropped"


class SizeNotSupportedError(Exception):
    """A model does not support an image size by design; the cell is skipped with this message."""


@contextlib.contextmanager
def usage_errors(prefix: str = "") -> Iterator[None]:
    """Raise UsageError for a model that does not fit."""
    try:
        yield
    except (ProbeError, SizeNotSupportedError) as problem:
        raise UsageError(f"{prefix}{problem}") from None
    except Exception as problem:
        if too_small := why_too_small_to_train(problem):
            raise UsageError(f"{prefix}{too_small}") from None
        raise


def why_too_small_to_train(problem: Exception) -> str:
    """Say what to do if a batch norm got a single value, which has no variance; "" for another problem."""
    if "Expected more than 1 value per channel when training" not in str(problem):  # in torch, or by its compiler
        return ""
    return "a batch norm of this model gets one value per channel in training; use a larger batch or larger images"


@dataclass(frozen=True)
class Weights:
    """A checkpoint of a model, with the names of its classes, if it has them, and its description of itself."""

    path: Path
    classes: tuple[str, ...] | None
    about: dict[str, Any]


def read_weights(path: Path) -> Weights:
    """Read a checkpoint's description of itself, without its tensors; raise UsageError if it cannot be read."""
    about = read_about(path)
    classes = about.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return Weights(path, tuple(classes) if named and classes is not None else None, about)


def build_model(name: str, size: tuple[int, int], *, classes: int | None, drop_path: float | None = None) -> nn.Module:
    """Build the model ``name``, as in ``--models``, for images of ``size`` (H, W).

    Args:
        classes: outputs of the classifier; None: the model's own number.
        drop_path: stochastic depth of the last block; None: the model's own.

    Raises:
        UsageError: this model has no such option.
        ProbeError, SizeNotSupportedError: see ``build_foreign``.
    """
    source = parse_source(name)
    if source.kind != "registry":
        if drop_path is not None:
            raise UsageError(f"drop_path is an option of our models; {name} sets its own")
        return build_foreign(source, size, classes=classes)
    declared = inspect.signature(MODELS.load(name.partition("[")[0])).parameters
    if drop_path is not None and "drop_path_rate" not in declared:
        raise UsageError(f"{name} has no stochastic depth; drop drop_path from the recipe")
    options: dict[str, Any] = {"num_classes": classes, "drop_path_rate": drop_path}
    if "img_size" in declared:
        options["img_size"] = size
    return sema.create_model(name, **{key: value for key, value in options.items() if value is not None})


def build_with_weights(name: str, size: tuple[int, int], weights: Weights, *, protocol: str = "crop") -> nn.Module:
    """Build the model ``name`` for images of ``size``, with the checkpoint's classes, and load the checkpoint.

    ``protocol`` may set options of the model that do not change its weights. A checkpoint that belongs to another
    model, is damaged, or holds code raises ProbeError.
    """
    if wrong := other_model(name, weights.path, weights.about):
        raise ProbeError(wrong)
    name = network_name(name, protocol)
    classes = len(weights.classes) if weights.classes else None
    try:
        try:
            model, report = _load(name, size, weights, classes)
        except sema.CheckpointError as problem:
            if problem.classes is None or weights.classes:
                raise
            classes = problem.classes
            model, report = _load(name, size, weights, classes)
    except (sema.CheckpointError, FileNotFoundError) as problem:
        message = str(problem)
        if classes is not None and getattr(problem, "classes", None) == classes:
            message = (
                f"{weights.path} has {classes} classes and {name} does not build that many; "
                "give the function that builds it a parameter num_classes"
            )
        raise ProbeError(message) from None
    vars(model)[_DROPPED] = report.dropped
    return model


def dropped_weights(model: nn.Module) -> dict[str, list[str]]:
    """List the checkpoint's tensors that the model lacks as ``{"weights_dropped": names}``; ``{}`` without any."""
    dropped = getattr(model, _DROPPED, ())
    return {_DROPPED: list(dropped)} if dropped else {}


def _load(name: str, size: tuple[int, int], weights: Weights, classes: int | None) -> tuple[nn.Module, LoadReport]:
    model = build_model(name, size, classes=classes)
    adapt = library_adapter(parse_source(name), model, size)
    return model, sema.load_checkpoint(model, weights.path, adapt=adapt)


def build_foreign(source: ModelSource, size: tuple[int, int], *, classes: int | None = None) -> nn.Module:
    """Build a model that is not ours for images of ``size`` (H, W), in eval mode.

    A function that declares ``img_size`` is called with (H, W), one that declares ``num_classes`` with ``classes``.

    Raises:
        ProbeError: the function failed or returned no module.
        SizeNotSupportedError: a library's model cannot run at this size.
    """
    if source.kind == "yardstick":
        return yardstick_network.build()
    if source.kind == "library":
        return _build_library_model(source, size, classes)
    if source.kind == "file":
        with noting_files(Path(source.target).resolve()):
            model = _call(_load_function(source), source, size, classes)
    else:
        model = _call(_load_entry_point(source), source, size, classes)
    if not isinstance(model, nn.Module):
        raise ProbeError(
            f"{source.name} returned {type(model).__name__}; expected an nn.Module that takes (B, 3, H, W)"
        )
    return _with_shapes(model.eval(), size)


def _call(build: Callable[..., Any], source: ModelSource, size: tuple[int, int], classes: int | None) -> object:
    try:
        offered = {"img_size": tuple(size), "num_classes": classes}
        declared = inspect.signature(build).parameters
        return build(**{key: value for key, value in offered.items() if key in declared and value is not None})
    except (Exception, SystemExit) as problem:
        raise ProbeError(f"{source.name} raised {type(problem).__name__}: {first_line(problem)}") from problem


def _with_shapes(model: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Give lazy modules (``nn.LazyConv2d``) their shapes: pass one image; raise ProbeError if one stays without."""
    if not _without_shape(model):
        return model
    try:
        with torch.no_grad():
            model(torch.zeros(1, IN_CHANS, *size))
    except Exception as problem:
        raise ProbeError(
            "lazy modules get their shapes from a forward pass of one image on the CPU, and it raised "
            f"{type(problem).__name__}: {first_line(problem)}"
        ) from problem
    if missed := _without_shape(model):
        raise ProbeError(
            f"a forward pass in eval mode gives no shape to {', '.join(missed[:5])}{', …' if missed[5:] else ''}; "
            "replace these lazy modules by plain ones, or remove them"
        )
    return model


def _without_shape(model: nn.Module) -> list[str]:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    return [name for name, tensor in tensors if is_lazy(tensor)]


def check_logits(output: object, images: tuple[int, ...]) -> None:
    """Raise ProbeError unless the output is one tensor (B, classes), or (B, classes, H, W) for pixels.

    Args:
        output: of the model.
        images: shape of its input, (B, channels, H, W).
    """
    batch, _, height, width = images
    expected = f"one tensor ({batch}, classes), or ({batch}, classes, {height}, {width}) if pixels have classes"
    if not isinstance(output, Tensor):
        raise ProbeError(f"the model gives {type(output).__name__}; expected {expected}")
    if output.ndim not in (2, 4) or (output.shape[0], *output.shape[2:]) not in ((batch,), (batch, height, width)):
        raise ProbeError(f"the model gives a tensor {tuple(output.shape)}; expected {expected}")


def _load_function(source: ModelSource) -> Callable[..., Any]:
    path = Path(source.target).resolve()
    module_name = MODULE_PREFIX + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as problem:
            del sys.modules[module_name]
            if isinstance(problem, KeyboardInterrupt):
                raise
            raise ProbeError(f"{path.name} raised {type(problem).__name__}: {first_line(problem)}") from problem
    function = getattr(sys.modules[module_name], source.function, None)
    if not callable(function):
        raise ProbeError(f"{source.function} of {path.name} is {type(function).__name__}; expected a function")
    checked: Callable[..., Any] = function
    return checked


def _load_entry_point(source: ModelSource) -> Callable[..., Any]:
    point = next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=source.target)))
    try:
        function: Callable[..., Any] = point.load()
    except Exception as problem:
        raise ProbeError(f"{point.value} raised {type(problem).__name__}: {first_line(problem)}") from problem
    return function


def _build_library_model(source: ModelSource, size: tuple[int, int], classes: int | None) -> nn.Module:
    """Build a model of timm or torchvision, for this size if it takes one, and run it on the meta device."""
    create, sized = _creator(source, size)
    options = {**({} if classes is None else {"num_classes": classes}), **source.options}
    try:
        model = _create(create, source, {**sized, **options}, options)
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(
            f"{source.function} cannot build it for this size: {first_line(problem)}"
        ) from problem
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval().to("meta")(torch.empty(1, IN_CHANS, *size, device="meta"))
    except NotImplementedError:
        pass  # an operator has no meta kernel, whatever the size
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(f"it does not run at this size: {first_line(problem)}") from problem
    return model.eval()


def _creator(source: ModelSource, size: tuple[int, int]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Choose the function that builds a library's model from options, and the options that fix the size."""
    if source.function == "timm":
        import timm

        _check_timm_name(source, timm)
        create = functools.partial(timm.create_model, source.target, pretrained=False, in_chans=IN_CHANS)
        return create, {"img_size": size}
    import torchvision

    create = functools.partial(torchvision.models.get_model, source.target, weights=None)
    quiet = {"init_weights": True} if source.target in ("googlenet", "inception_v3") else {}  # it warns otherwise
    return functools.partial(create, **quiet), {"image_size": size[0]} if size[0] == size[1] else {}


def library_adapter(
    source: ModelSource, model: nn.Module, size: tuple[int, int]
) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None:
    """Find the library's own function that resizes stored positions to the grid of ``model``.

    Models of other kinds have none, and neither have families whose weights suit every size.
    """
    if source.kind != "library":
        return None
    module = sys.modules[type(model).__module__]
    if source.function == "timm":
        fit = getattr(module, "checkpoint_filter_fn", None)
        return None if fit is None else lambda stored: fit(stored, model)
    resize = getattr(module, "interpolate_embeddings", None)
    if resize is None or not hasattr(model, "patch_size"):
        return None
    return lambda stored: resize(size[0], model.patch_size, OrderedDict(stored))


def _check_timm_name(source: ModelSource, timm: Any) -> None:
    """Refuse a name that timm does not have, or an unknown tag of pretrained weights (``resnet18.a1_in1k``)."""
    if ":" not in source.target and not timm.is_model(source.target.partition(".")[0]):
        near = difflib.get_close_matches(source.target, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProbeError(f"timm {timm.__version__} has no model {source.target!r}{hint}")
    if "." in source.target and ":" not in source.target:
        try:
            timm.models.get_pretrained_cfg(source.target, allow_unregistered=False)
        except RuntimeError as problem:
            raise ProbeError(f"timm {timm.__version__}: {first_line(problem)}") from None


def _create(
    create: Callable[..., nn.Module], source: ModelSource, sized: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    """Build with the options that fix the size if the model takes them; raise ProbeError for an unknown option."""
    try:
        try:
            return create(**sized)
        except TypeError as problem:
            if not any(key in str(problem) for key in sized.keys() - options.keys()):
                raise
            return create(**options)
    except TypeError as problem:
        if "keyword argument" in str(problem):
            raise ProbeError(f"{source.function} refuses an option: {first_line(problem)}") from problem
        raise


def refused_models(names: Sequence[str]) -> dict[str, str]:
    """Try to build each model without memory; map those that cannot be built to the reason."""
    refused = {}
    for name in names:
        try:
            with torch.device("meta"):
                build_model(name, _TRIAL_SIZE, classes=None)
        except SizeNotSupportedError:
            continue  # each cell checks its own size
        except (ValueError, TypeError, KeyError, ProbeError) as problem:
            refused[name] = str(problem)
    return refused
