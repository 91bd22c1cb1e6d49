"""Models that are not ours, built in a worker process: from a file, an installed package, or timm."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sema_bench.axes import Resolution
from sema_bench.model_source import ENTRY_POINTS, ModelSource
from sema_bench.probes.base import ProbeError

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
        SizeNotSupportedError: timm's model cannot run at this size.
    """
    if source.kind == "yardstick":
        from sema_bench import yardstick_network

        return yardstick_network.build()
    if source.kind == "timm":
        return _build_timm(source, resolution, classes)
    build = _function_of_file(source) if source.kind == "file" else _loaded_entry_point(source)
    try:
        offered = {"img_size": (resolution.height, resolution.width), "num_classes": classes}
        declared = inspect.signature(build).parameters
        model = build(**{key: value for key, value in offered.items() if key in declared and value is not None})
    except (Exception, SystemExit) as problem:
        raise ProbeError(f"{source.name} raised {type(problem).__name__}: {_first_line(problem)}") from problem
    if not isinstance(model, nn.Module):
        raise ProbeError(
            f"{source.name} returned {type(model).__name__}; expected an nn.Module that takes (B, 3, H, W)"
        )
    return model.eval()


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
    module_name = f"sema_bench_model_{abs(hash(path))}"
    if module_name not in sys.modules:
        sys.path.insert(0, str(path.parent))  # so that the file can import its neighbours
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


def _build_timm(source: ModelSource, resolution: Resolution, classes: int | None) -> nn.Module:
    """Build timm's model for this very size where it takes one, as its users do, and see on shapes that it runs."""
    import difflib

    import timm

    if not timm.is_model(source.target.partition(".")[0]):
        near = difflib.get_close_matches(source.target, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProbeError(f"timm {timm.__version__} has no model {source.target!r}{hint}")
    size = (resolution.height, resolution.width)
    common: dict[str, Any] = {"pretrained": False, "in_chans": _IN_CHANS}
    common |= {} if classes is None else {"num_classes": classes}
    try:
        model = timm.create_model(source.target, img_size=size, **common)
    except TypeError as problem:
        if "img_size" not in str(problem):
            raise
        model = timm.create_model(source.target, **common)
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(f"timm cannot build it for this size: {_first_line(problem)}") from problem
    try:
        with torch.no_grad():
            _on_meta(model)(torch.empty(1, _IN_CHANS, *size, device="meta"))
    except NotImplementedError:
        pass  # an operator without a shape rule tells nothing about the size
    except _SIZE_ERRORS as problem:
        raise SizeNotSupportedError(f"it does not run at this size: {_first_line(problem)}") from problem
    return model.eval()  # type: ignore[no-any-return]


def _on_meta(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).eval().to("meta")


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(problem).__name__
