"""Models that are not ours, built in a worker process: from a file, an installed package, timm or torchvision."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sema_bench.errors import ProbeError
from sema_bench.spec.model_source import ENTRY_POINTS, ModelSource
from sema_bench.spec.resolution import Resolution
from sema_bench.worker.lazy_modules import materialise
from sema_bench.worker.model_imports import MODULE_PREFIX, noting_files

_IN_CHANS = 3
#: What models raise at a size that they were not made for.
_SIZE_ERRORS = (AssertionError, ValueError, RuntimeError, IndexError, TypeError)


class SizeNotSupportedError(Exception):
    """A model cannot run at a size by its design; the cell is skipped with this message."""


def build_foreign(source: ModelSource, resolution: Resolution, *, classes: int | None = None) -> nn.Module:
    """Build a model for images of ``resolution``, in eval mode.

    A function that declares a parameter ``img_size`` is called with (H, W), one that declares ``num_classes`` with
    ``classes`` where they are given.

    Raises:
        ProbeError: the function failed or returned no module.
        SizeNotSupportedError: a library's model cannot run at this size.
    """
    if source.kind == "yardstick":
        from sema_bench.worker import yardstick_network

        return yardstick_network.build()
    if source.kind == "library":
        return _build_library_model(source, resolution, classes)
    if source.kind == "file":
        with noting_files(Path(source.target).resolve()):
            model = _called(_function_of_file(source), source, resolution, classes)
    else:
        model = _called(_loaded_entry_point(source), source, resolution, classes)
    if not isinstance(model, nn.Module):
        raise ProbeError(
            f"{source.name} returned {type(model).__name__}; expected an nn.Module that takes (B, 3, H, W)"
        )
    return materialise(model.eval(), resolution, in_chans=_IN_CHANS)


def _called(build: Callable[..., Any], source: ModelSource, resolution: Resolution, classes: int | None) -> object:
    try:
        offered = {"img_size": (resolution.height, resolution.width), "num_classes": classes}
        declared = inspect.signature(build).parameters
        return build(**{key: value for key, value in offered.items() if key in declared and value is not None})
    except (Exception, SystemExit) as problem:
        raise ProbeError(f"{source.name} raised {type(problem).__name__}: {_first_line(problem)}") from problem


def check_logits(output: object, batch: int) -> None:
    """Refuse an output that is not one tensor (B, classes).

    Raises:
        ProbeError: what the model gave.
    """
    if not isinstance(output, Tensor):
        raise ProbeError(f"the model gives {type(output).__name__}; expected one tensor (B, classes)")
    if output.ndim != 2 or output.shape[0] != batch:
        raise ProbeError(f"the model gives a tensor {tuple(output.shape)}; expected (B, classes) with B = {batch}")


def _function_of_file(source: ModelSource) -> Callable[..., Any]:
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
            raise ProbeError(f"{path.name} raised {type(problem).__name__}: {_first_line(problem)}") from problem
    function = getattr(sys.modules[module_name], source.function, None)
    if not callable(function):
        raise ProbeError(f"{source.function} of {path.name} is {type(function).__name__}; expected a function")
    return function  # type: ignore[no-any-return]


def _loaded_entry_point(source: ModelSource) -> Callable[..., Any]:
    point = next(iter(importlib.metadata.entry_points(group=ENTRY_POINTS, name=source.target)))
    try:
        return point.load()  # type: ignore[no-any-return]
    except Exception as problem:
        raise ProbeError(f"{point.value} raised {type(problem).__name__}: {_first_line(problem)}") from problem


def _build_library_model(source: ModelSource, resolution: Resolution, classes: int | None) -> nn.Module:
    """Build a model of timm or torchvision for this very size where it takes one, and see on shapes that it runs."""
    size = (resolution.height, resolution.width)
    create, sized = _creator(source, size)
    options = {**({} if classes is None else {"num_classes": classes}), **source.options}
    try:
        model = _created(create, source, {**sized, **options}, options)
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(
            f"{source.function} cannot build it for this size: {_first_line(problem)}"
        ) from problem
    try:
        with torch.no_grad():
            _on_meta(model)(torch.empty(1, _IN_CHANS, *size, device="meta"))
    except NotImplementedError:
        pass  # an operator without a shape rule tells nothing about the size
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(f"it does not run at this size: {_first_line(problem)}") from problem
    return model.eval()


def _creator(source: ModelSource, size: tuple[int, int]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """Return what builds a library's model by its options, and those that fix the size."""
    if source.function == "timm":
        import timm

        _check_timm_name(source)
        create = functools.partial(timm.create_model, source.target, pretrained=False, in_chans=_IN_CHANS)
        return create, {"img_size": size}
    import torchvision

    create = functools.partial(torchvision.models.get_model, source.target, weights=None)
    quiet = {"init_weights": True} if source.target in ("googlenet", "inception_v3") else {}  # it warns otherwise
    return functools.partial(create, **quiet), {"image_size": size[0]} if size[0] == size[1] else {}


def library_adapter(
    source: ModelSource, model: nn.Module, size: tuple[int, int]
) -> Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None:
    """Return the library's own way to fit stored weights to ``model``: positions are resized to its grid.

    None where there is none: for models of other kinds, and families of which every weight has one size.
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


def _check_timm_name(source: ModelSource) -> None:
    """Refuse a name that timm does not have, or a tag of pretrained weights (``resnet18.a1_in1k``)."""
    import timm

    if ":" not in source.target and not timm.is_model(source.target.partition(".")[0]):
        near = difflib.get_close_matches(source.target, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProbeError(f"timm {timm.__version__} has no model {source.target!r}{hint}")
    if "." in source.target and ":" not in source.target:
        try:
            timm.models.get_pretrained_cfg(source.target, allow_unregistered=False)
        except RuntimeError as problem:
            raise ProbeError(f"timm {timm.__version__}: {_first_line(problem)}") from None


def _created(
    create: Callable[..., nn.Module], source: ModelSource, sized: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    """Build with the options that fix the size where the model takes them, else without.

    Raises:
        ProbeError: the model has no such option.
    """
    try:
        try:
            return create(**sized)
        except TypeError as problem:
            if not any(key in str(problem) for key in sized.keys() - options.keys()):
                raise
            return create(**options)
    except TypeError as problem:
        if "keyword argument" in str(problem):
            raise ProbeError(f"{source.function} refuses an option: {_first_line(problem)}") from problem
        raise


def _on_meta(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).eval().to("meta")


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__
