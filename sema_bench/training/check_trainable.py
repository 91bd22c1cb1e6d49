"""A first look at a network that is not ours: whether it can be trained at all, told before anything is written."""

from __future__ import annotations

import torch
from torch import nn

from sema_bench.errors import ProbeError, UsageError
from sema_bench.spec.model_source import parse_source
from sema_bench.worker.foreign_model import check_logits
from sema_bench.worker.workload import is_out_of_memory

_BATCH = 2


def every_parameter_learns(
    name: str, model: nn.Module, size: tuple[int, int], *, classes: int, device: torch.device
) -> bool:
    """Tell whether all parameters get a gradient; ours are known to, those of others pass two images to see.

    The model is left as it was.

    Args:
        name: as in ``--models``.
        model: (B, 3, H, W) → (B, classes), in train mode on ``device``.
        size: (H, W).
        classes: how many the data has.
        device: where it computes.

    Raises:
        UsageError: it fails, gives something else than logits for ``classes``, or has nothing to train.
    """
    if parse_source(name).kind == "registry":
        return True
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError(f"{name} has no parameters that can be trained")
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        _step(model, torch.randn(_BATCH, 3, *size, device=device), classes)
    except ProbeError as problem:
        raise UsageError(f"{name}: {problem}") from None
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        text = next(iter(str(problem).strip().splitlines()), "")
        raise UsageError(f"{name} cannot be trained at this size: {type(problem).__name__}: {text}") from problem
    every = all(parameter.grad is not None for parameter in parameters)
    model.zero_grad(set_to_none=True)
    model.load_state_dict(kept)
    return every


def _step(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    for training in (False, True):
        logits = model.train(training)(images.to(memory_format=torch.channels_last))
        check_logits(logits, _BATCH)
        if logits.shape[1] != classes:
            raise ProbeError(
                f"the model gives {logits.shape[1]} classes{' in train mode' if training else ''} and the data has "
                f"{classes}; let its function take num_classes"
            )
    if not logits.requires_grad:
        raise ProbeError("its logits give no parameter a gradient (is something detached?)")
    logits.float().sum().backward()
