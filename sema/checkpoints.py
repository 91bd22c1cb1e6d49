"""Load weights from our own safetensors files and from the official checkpoints of our models.

Nothing in a file is ever executed: safetensors hold plain numbers, and pickles are read with ``weights_only=True``. A
checkpoint that does not fit leaves the model unchanged.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sema.checkpoint_files import SAVE_WEIGHTS, CheckpointError, file_format, first_line, first_names
from sema.checkpoint_keys import select_weights, sides
from sema.checkpoint_layout import CheckpointLayout
from sema.checkpoint_pickles import named_tensors, read_pickle, stand_in_class
from sema.models import MODELS


class LoadReport(NamedTuple):
    """Keys that the checkpoint lacks, that the model lacks, and whose shapes differ; all empty after a strict load.

    ``dropped`` names the checkpoint's other tensors: a loss, an average of the weights, a tool's counters
    (``*.total_ops``). ``branch.*`` stands for a whole branch.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    dropped: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True if checkpoint and model have the same keys and shapes."""
        return not (self.missing or self.unexpected or self.mismatched)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    ema: bool = False,
    adapt: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> LoadReport:
    """Load weights into ``model`` in place, from our layout or the official code's.

    The weights may be under any prefix (``model.``, ``state_dict.module.``, …), see ``sema.checkpoint_keys``. Buffers
    that the official code computes for its one size are dropped. Biases of windows of another size are interpolated
    here. A table of positions keeps its size, so it is interpolated only once: from the trained size to the input's.

    Args:
        model: any module, ours or not.
        source: a file (safetensors, or a pickle as ``torch.save`` writes it), or a state dict in memory.
        strict: refuse missing keys, unexpected keys and different shapes; otherwise load the rest and report these.
        ema: load the moving average of the weights instead of the weights.
        adapt: converts the stored weights for a model without ``fit_stored``, for example by resizing positions.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, a pickle that needs code, or weights that do not fit; the model is unchanged.
    """
    targets = {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    if any(value.is_meta for value in targets.values()):
        raise CheckpointError("the model is on the meta device and holds no weights; build it on a real one first")
    if any(map(nn.parameter.is_lazy, targets.values())):
        raise CheckpointError("the model has lazy layers that hold no weights yet; run it once on an image first")
    name, body = ("the state dict", source) if isinstance(source, Mapping) else _read(Path(source))
    layout = getattr(model, "checkpoint_layout", CheckpointLayout())
    stored, dropped, hint = select_weights(name, _tensors(name, body), targets, layout, ema=ema)
    if odd := next((key for key, value in stored.items() if value.layout != torch.strided or value.is_meta), None):
        kind = "a tensor without values (meta)" if stored[odd].is_meta else "a sparse tensor"
        raise CheckpointError(f"{name}: {odd} is {kind}; save dense tensors that hold values")
    fitted, report = _fit(model, targets, stored if adapt is None else adapt(stored))
    report = report._replace(dropped=dropped)
    if (strict and not report.fits) or not fitted:
        differing = [key for key in stored if key in targets and key not in fitted]
        classes = _stored_classes(stored, targets, differing)
        if classes is not None:
            hint = f". It has {classes} classes; build the model with num_classes={classes}"
        problem = f"{name} does not fit {type(model).__name__}: {_difference(report)}{hint or _likely_model(stored)}"
        raise CheckpointError(problem, classes=classes)
    with torch.no_grad():
        for key, value in fitted.items():
            target = targets[key]
            if target.shape == value.shape:
                target.copy_(value)
            else:
                target.data = value.to(target)
    return report


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the model's state dict as safetensors; an existing file is replaced whole or not at all."""
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
    """Copy ``tensors`` to the CPU, contiguous and in separate memory: safetensors cannot hold tied weights."""
    copies: dict[str, Tensor] = {}
    used = set()
    for key, value in tensors.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        copies[key] = value.clone() if address in used else value
        used.add(address)
    return copies


def _read(path: Path) -> tuple[str, Mapping[str, Any]]:
    name = repr(str(path))
    if file_format(path) == "torch":
        body = read_pickle(path)
        if not isinstance(body, Mapping):
            raise CheckpointError(f"{name} holds {type(body).__name__}, not a state dict")
        return name, body
    from safetensors.torch import load_file

    try:
        return name, load_file(path)
    except Exception as problem:  # safetensors raises its own errors, and those of torch for an unknown dtype
        raise CheckpointError(f"{name} is not a complete safetensors file: {first_line(problem)}") from None


def _tensors(name: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    if tensors := named_tensors(state):
        return tensors
    if objects := [value for value in (state, *state.values()) if stand_in_class(value)]:
        kind = stand_in_class(min(objects, key=lambda value: "_modules" not in vars(value)))  # a whole model, if any
        raise CheckpointError(f"{name} holds an object of class {kind} in place of weights, {SAVE_WEIGHTS}")
    first_keys = ", ".join(map(str, list(state)[:3])) or "nothing"
    raise CheckpointError(f"{name} holds no weights; its first keys: {first_keys}")


def _fit(
    model: nn.Module, targets: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], LoadReport]:
    """Fit the tensors to the model's shapes, and report those that do not fit; the model is unchanged."""
    fitted: dict[str, Tensor] = {}
    mismatched = []
    for key in [key for key in stored if key in targets]:
        try:
            fitted[key] = _fit_one(model, key, targets[key], stored[key])
        except ValueError as problem:
            mismatched.append(f"{key} ({problem})")
    # Batch counters came with torch 1.0, see ``sema.checkpoint_keys``.
    missing = [key for key in targets if key not in stored and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in stored if key not in targets]
    return fitted, LoadReport(tuple(missing), tuple(unexpected), tuple(mismatched))


def _fit_one(model: nn.Module, key: str, target: Tensor, value: Tensor) -> Tensor:
    if value.is_floating_point() != target.is_floating_point():
        raise ValueError(f"{value.dtype} in the checkpoint, {target.dtype} in the model")
    if value.shape == target.shape:
        return value
    if sides(value.shape) == sides(target.shape):
        return value.reshape(target.shape)
    owners = key.split(".")
    for depth in range(len(owners) - 1, -1, -1):
        fit = getattr(model.get_submodule(".".join(owners[:depth])), "fit_stored", None)
        if fit is not None and (fitted := fit(".".join(owners[depth:]), value)) is not None:
            return fitted
    raise ValueError(f"{_shape(value)} in the checkpoint, {_shape(target)} in the model")


def _difference(report: LoadReport) -> str:
    kinds = {"missing": report.missing, "unexpected": report.unexpected, "of another shape": report.mismatched}
    parts = [f"{len(keys)} {kind}: {first_names(keys)}" for kind, keys in kinds.items() if keys]
    return "; ".join(parts) or "no key of the checkpoint is one of the model"


def _stored_classes(stored: Mapping[str, Tensor], targets: Mapping[str, Tensor], differing: list[str]) -> int | None:
    """Return the checkpoint's number of classes if its classifier differs from the model's only in that.

    Classifiers have many names (``head``, ``fc``, ``classifier.1``, ``heads.head``), so the shapes decide: weights and
    biases differ only in their first side, and all by the same two numbers.
    """
    shapes = [(stored[key].shape, targets[key].shape) for key in differing]
    if not all(key.rpartition(".")[2] in ("weight", "bias") for key in differing) or not all(map(all, shapes)):
        return None
    pairs = {(ours[0], theirs[0]) for ours, theirs in shapes}
    tails_agree = all(sides(ours[1:]) == sides(theirs[1:]) for ours, theirs in shapes)
    if len(pairs) != 1 or not tails_agree or not any(len(shape) > 1 for shape, _ in shapes):
        return None
    classes, others = pairs.pop()
    return classes if classes != others else None


def _likely_model(stored: Mapping[str, Tensor]) -> str:
    """Name, in a sentence, the registered model that fits more than 90 % of the checkpoint, if any."""
    scores: dict[str, float] = {}
    for name in MODELS:
        targets, layout = _registered(name)
        shapes = {layout.translate(key): sides(value.shape) for key, value in stored.items()}
        shared = sum(key in targets and targets[key] == shape for key, shape in shapes.items())
        scores[name] = shared / max(len(targets), len(shapes))
    best = max(scores, key=lambda name: scores[name])
    return f". It looks like a checkpoint of {best!r}" if scores[best] > 0.9 else ""


@functools.cache
def _registered(name: str) -> tuple[dict[str, list[int]], CheckpointLayout]:
    """Build a registered model on the meta device; return the sides of its state dict, and its layout."""
    with torch.device("meta"):
        model = MODELS.load(name)()
    layout = getattr(model, "checkpoint_layout", CheckpointLayout())
    return {key: sides(value.shape) for key, value in model.state_dict().items()}, layout


def _shape(x: Tensor) -> str:
    return "×".join(str(side) for side in x.shape) or "a scalar"
