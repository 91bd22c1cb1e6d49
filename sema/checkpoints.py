"""Load weights: our own safetensors files, and the official checkpoints of the models that are reproduced here.

Nothing in a file is ever executed: safetensors hold plain numbers, and pickles are read with ``weights_only=True``. A
checkpoint that does not fit changes nothing in the model.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sema.checkpoint_layout import CheckpointLayout
from sema.models import MODELS

#: Keys under which training scripts wrap a state dict, and those of its moving average.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "module")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
#: Prefixes that wrappers around a model leave on every key.
_PREFIXES = ("module.", "_orig_mod.", "model.", "ema.", "_checkpoint_wrapped_module.")
_SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
#: A wrapper may hold another one, but not for ever.
_MOST_WRAPPERS = 8
_NAMED = 3


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line that says what to do.

    Attributes:
        classes: how many classes the checkpoint was made for, where their number is what does not fit.
    """

    def __init__(self, message: str, *, classes: int | None = None) -> None:
        super().__init__(message)
        self.classes = classes


class LoadReport(NamedTuple):
    """What did not meet its counterpart; all empty after a strict load.

    Attributes:
        missing: keys of the model that the checkpoint lacks.
        unexpected: keys of the checkpoint that the model lacks.
        mismatched: keys of both whose shapes do not fit.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    ema: bool = False,
) -> LoadReport:
    """Load weights into ``model``, from our layout or from that of the official code, in place.

    Wrappers (``model``, ``state_dict``, …) and prefixes (``module.``, …) are taken off and buffers that the official
    code derives from its one size are dropped. A table of positions of another size is kept as it is, so that it is
    interpolated once, from where it was trained to the size of the input; biases of windows of another size are
    interpolated here.

    Args:
        model: built by ``sema.create_model``, or any module whose keys the checkpoint holds.
        source: a file (safetensors, or a pickle as ``torch.save`` writes it), or a state dict in memory.
        strict: refuse missing keys, unexpected keys and shapes that do not fit. Without it what fits is loaded and the
            rest is in the report.
        ema: take the moving average of the weights where the file has both; by default the weights themselves.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, a pickle that needs code, or weights that do not fit this model; the model is
            as it was.
    """
    if any(p.device.type == "meta" for p in model.parameters()):
        raise CheckpointError("the model is on the meta device and holds no weights; build it on a real one first")
    name, state = ("the state dict", dict(source)) if isinstance(source, Mapping) else _read(Path(source))
    layout = getattr(model, "checkpoint_layout", CheckpointLayout())
    stored = _official_to_ours(_strip_prefixes(_unwrap(name, state, ema=ema)), layout)
    targets = model.state_dict(keep_vars=True)
    fitted, report = _fit(model, targets, stored)
    if (strict and any(report)) or not fitted:
        classes = _stored_classes(model, stored)
        raise CheckpointError(
            f"{name} does not fit {type(model).__name__}: {_difference(report)}{_advice(stored, classes)}",
            classes=classes,
        )
    with torch.no_grad():
        for key, value in fitted.items():
            target = targets[key]
            if target.shape == value.shape:
                target.copy_(value)
            else:
                target.data = value.to(target)
    return report


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state dict as safetensors; a file of that name is replaced whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    body = save(apart(model.state_dict()))
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` on the CPU, contiguous, each in memory of its own: safetensors hold no tied weights."""
    found: dict[str, Tensor] = {}
    used = set()
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        where = value.untyped_storage().data_ptr()
        found[key] = value.clone() if where in used else value
        used.add(where)
    return found


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    name = repr(str(path))
    if path.is_dir():
        raise CheckpointError(f"{name} is a folder; give the checkpoint file in it")
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {name}")
    if path.suffix in _SAFETENSORS_SUFFIXES:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return name, dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as problem:
            raise CheckpointError(f"{name} is no complete safetensors file: {_first_line(problem)}") from None
    try:
        with torch.serialization.safe_globals(_INERT):
            body = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        found = re.search(r"GLOBAL ([\w.]+)", str(problem))
        what = f"refers to {found[1]}" if found else "is no plain pickle of weights"
        raise CheckpointError(
            f"{name} {what}, and code in a checkpoint is never run; save its state dict as safetensors and load that"
        ) from None
    except Exception as problem:  # torch, zipfile and pickle raise their own of every kind on a damaged file
        raise CheckpointError(
            f"{name} cannot be read as a checkpoint (truncated, or another kind of file): {_first_line(problem)}"
        ) from None
    if not isinstance(body, Mapping):
        raise CheckpointError(f"{name} holds {type(body).__name__}, not a state dict")
    return name, dict(body)


#: Settings that the official training scripts put beside the weights. They are read as plain data and thrown away; the
#: unpickler fills no mapping but the standard ones.
_INERT: list[Any] = [(SimpleNamespace, "argparse.Namespace"), (OrderedDict, "yacs.config.CfgNode")]


def _unwrap(name: str, state: Mapping[str, Any], *, ema: bool) -> dict[str, Tensor]:
    wrappers = (*_EMA_WRAPPERS, *_WRAPPERS) if ema else (*_WRAPPERS, *_EMA_WRAPPERS)
    if ema and not any(isinstance(state.get(key), Mapping) for key in _EMA_WRAPPERS):
        raise CheckpointError(f"{name} holds no moving average of the weights; leave ema off")
    for _ in range(_MOST_WRAPPERS):
        inner = next((state[key] for key in wrappers if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        listed = ", ".join(str(key) for key in list(state)[:_NAMED]) or "nothing"
        raise CheckpointError(f"{name} holds no weights; its first keys: {listed}")
    if odd := next((key for key, value in tensors.items() if value.layout != torch.strided or value.is_meta), None):
        kind = "a tensor without values (meta)" if tensors[odd].is_meta else "a sparse tensor"
        raise CheckpointError(f"{name}: {odd} is {kind}; save dense tensors that hold values")
    return tensors


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _official_to_ours(state: Mapping[str, Tensor], layout: CheckpointLayout) -> dict[str, Tensor]:
    ours = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in layout.derived):
            continue
        for pattern, replacement in layout.renames:
            key = re.sub(pattern, replacement, key)
        if key in ours:
            raise CheckpointError(f"the checkpoint holds {key!r} twice, in two layouts")
        ours[key] = value
    return ours


def _fit(
    model: nn.Module, targets: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Return what can be loaded, in the shape it will have, and what cannot; the model is not touched."""
    fitted: dict[str, Tensor] = {}
    mismatched = []
    for key, value in stored.items():
        if key not in targets:
            continue
        try:
            fitted[key] = _fit_one(model, key, targets[key], value)
        except ValueError as problem:
            mismatched.append(f"{key} ({problem})")
    # Counters of batches came with torch 1.0; older files lack them and nothing reads them in eval mode.
    missing = [key for key in targets if key not in stored and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in stored if key not in targets]
    return fitted, LoadReport(tuple(missing), tuple(unexpected), tuple(mismatched))


def _fit_one(model: nn.Module, key: str, target: Tensor, value: Tensor) -> Tensor:
    if value.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{value.dtype} in the checkpoint, {target.dtype} in the model")
    if value.shape == target.shape:
        return value
    if _sides(value) == _sides(target):
        return value.reshape(target.shape)
    owners = key.split(".")
    for depth in range(len(owners) - 1, -1, -1):
        fit = getattr(model.get_submodule(".".join(owners[:depth])), "fit_stored", None)
        if fit is not None:
            return fit(".".join(owners[depth:]), value)  # type: ignore[no-any-return]
    raise ValueError(f"{_shape(value)} in the checkpoint, {_shape(target)} in the model")


def _difference(report: LoadReport) -> str:
    parts = [
        f"{len(keys)} {kind}: {', '.join(keys[:_NAMED])}{', …' if len(keys) > _NAMED else ''}"
        for kind, keys in zip(("missing", "unexpected", "of another shape"), report, strict=True)
        if keys
    ]
    return "; ".join(parts) or "no key of the checkpoint is one of the model"


def _stored_classes(model: nn.Module, stored: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of the checkpoint, if its classifier differs from the model's in that alone."""
    classes = {
        stored[key].shape[0]
        for key, target in model.state_dict().items()
        if key in stored and target.shape != stored[key].shape and "head" in key
    }
    return classes.pop() if len(classes) == 1 else None


def _advice(stored: Mapping[str, Tensor], classes: int | None) -> str:
    """Name the model that the checkpoint belongs to, or the number of classes that it has."""
    if classes is not None:
        return f". It has {classes} classes; build the model with num_classes={classes}"
    best = _likely_model(stored)
    return f". It looks like a checkpoint of {best!r}" if best else ""


def _likely_model(stored: Mapping[str, Tensor]) -> str | None:
    """Return the model of the registry that most of the checkpoint fits, if any is near."""
    scores: dict[str, float] = {}
    for name in MODELS:
        targets, layout = _registered(name)
        shapes = {key: _sides(value) for key, value in _official_to_ours(stored, layout).items()}
        shared = sum(targets.get(key) == shape for key, shape in shapes.items())
        scores[name] = shared / max(len(targets), len(shapes))
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0.9 else None


@functools.cache
def _registered(name: str) -> tuple[dict[str, list[int]], CheckpointLayout]:
    """Return the sides of the state dict of a model of the registry, and how its official keys map to ours."""
    with torch.device("meta"):
        model = MODELS.load(name)()
    layout = getattr(model, "checkpoint_layout", CheckpointLayout())
    return {key: _sides(value) for key, value in model.state_dict().items()}, layout


def _sides(x: Tensor) -> list[int]:
    """Return the sides of ``x`` but for those of one element."""
    return [side for side in x.shape if side != 1]


def _shape(x: Tensor) -> str:
    return "×".join(str(side) for side in x.shape) or "a scalar"


def _first_line(problem: BaseException) -> str:
    lines: Iterable[str] = str(problem).strip().splitlines()
    return next(iter(lines), type(problem).__name__)[:200]
