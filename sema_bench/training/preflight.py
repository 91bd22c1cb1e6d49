"""Check before the first training step that the network can be trained and that a step fits into memory.

Too large a step would make the kernel kill the process.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from sema_bench.driver.memory_fit import WORKER_BYTES, capacity_bytes
from sema_bench.errors import ProbeError, UsageError, first_line, is_out_of_memory
from sema_bench.machine.processes import count_of_processes
from sema_bench.spec import units as fmt
from sema_bench.spec.data_source import DataSpec, unlike_data
from sema_bench.spec.model_source import parse_source
from sema_bench.spec.recipe import Recipe
from sema_bench.training.devices import Distributed
from sema_bench.worker.build_model import check_logits
from sema_bench.worker.forecast import forecast
from sema_bench.worker.training_step import checkpoint_blocks

_TRIAL_BATCH = 2
#: A step certainly fits if this many times the bytes of its images are free: no model keeps that many activations.
_PLENTY = 1000
#: The forecast was within 3 % of the measured memory; the rest is for the images that wait.
_MARGIN = 1.08


def check_outputs(model: nn.Module, size: tuple[int, int], data: DataSpec, device: torch.device) -> None:
    """Raise UsageError unless ``model`` classifies what ``data`` labels, pixels or images."""
    with torch.inference_mode():
        logits = model.eval()(torch.zeros(1, 3, *size, device=device))
    model.train()
    if problem := unlike_data(of_pixels=isinstance(logits, torch.Tensor) and logits.ndim == 4, data=data):
        raise UsageError(problem)


def every_parameter_learns(
    name: str, model: nn.Module, size: tuple[int, int], *, classes: int, device: torch.device
) -> bool:
    """Check whether all parameters get a gradient: ours do; try others on two images.

    The model is in train mode on ``device`` and does not change; raise UsageError if it cannot be trained.
    """
    if parse_source(name).kind == "registry":
        return True
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise UsageError(f"{name} has no parameters that can be trained")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    try:
        _try_step(model, torch.randn(_TRIAL_BATCH, 3, *size, device=device), classes)
    except ProbeError as problem:
        raise UsageError(f"{name}: {problem}") from None
    except Exception as problem:
        if is_out_of_memory(problem):
            raise
        text = f"{type(problem).__name__}: {first_line(problem)}"
        raise UsageError(f"{name} cannot be trained at this size: {text}") from problem
    every = all(parameter.grad is not None for parameter in parameters)
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before)
    return every


def _try_step(model: nn.Module, images: torch.Tensor, classes: int) -> None:
    for training in (False, True):
        logits = model.train(training)(images.to(memory_format=torch.channels_last))
        check_logits(logits, images.shape)
        if logits.shape[1] != classes:
            raise ProbeError(
                f"the model gives {logits.shape[1]} classes{' in train mode' if training else ''} and the data has "
                f"{classes}; let its function take num_classes"
            )
    if not logits.requires_grad:
        raise ProbeError("its logits give no parameter a gradient (is something detached?)")
    logits.float().sum().backward()


def check_step_fits(model: nn.Module, recipe: Recipe, distributed: Distributed) -> None:
    """Raise UsageError if a training step does not fit into free memory; the message says which ``accumulate`` does."""
    free = capacity_bytes(str(distributed.device))
    if free is None:
        return
    if distributed.device.type == "cpu":
        free //= count_of_processes("LOCAL_WORLD_SIZE")
    free -= WORKER_BYTES
    part = recipe.batch // (recipe.accumulate * distributed.world)
    height, width = recipe.size
    images_bytes = part * 3 * height * width * 4
    if images_bytes * _PLENTY + 8 * sum(parameter.nbytes for parameter in model.parameters()) < free:
        return
    needed = _needed_bytes(model, recipe, distributed, part)
    if needed is not None and needed > free:
        raise UsageError(
            f"a training step on {part} images of {height}x{width} needs about {fmt.size(needed)} of memory, and "
            f"{fmt.size(free)} are free; {_advice(model, recipe, distributed, part, needed, free)}"
        )


def _advice(model: nn.Module, recipe: Recipe, distributed: Distributed, part: int, needed: int, free: int) -> str:
    """Name the fewest parts of the batch that fit; memory grows linearly with the images of a part."""
    split = recipe.model_copy(update={"accumulate": max(2, recipe.accumulate)})  # gradients stay between parts
    one, needed = _needed_bytes(model, split, distributed, 1), _needed_bytes(model, split, distributed, part) or needed
    if one is None or one > free:
        return "not even one image fits; give a smaller --res or model"
    per_image = (needed - one) / (part - 1)
    most = 1 + int((free - one) / per_image)
    shares = recipe.batch // distributed.world
    fitting = next(share for share in range(min(most, shares), 0, -1) if shares % share == 0)
    return (
        f"parts of {fitting} images fit: add --set accumulate={shares // fitting} for the same batch of "
        f"{recipe.batch}, or train with --batch {fitting * distributed.world}"
    )


def _needed_bytes(model: nn.Module, recipe: Recipe, distributed: Distributed, images: int) -> int | None:
    """Predict the memory of a step on ``images`` besides the weights; None if the model cannot be traced."""
    # Copy shapes alone: memory may be too short for a second set of weights.
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    shapes = copy.deepcopy(model, memo)
    if recipe.checkpointing:
        checkpoint_blocks(shapes)
    shape, device = (images, 3, *recipe.size), str(distributed.device)
    try:
        with distributed.autocast(recipe.amp):
            predicted = forecast(shapes, shape, device=device, memory_format=torch.channels_last, train=True)
    except Exception:  # a model may do anything to a tensor without values
        return None
    copies = (recipe.accumulate > 1) + (recipe.ema > 0)  # gradients that stay, and the average
    return round(_MARGIN * (predicted.predicted_peak_bytes + (copies - 1) * predicted.weights_bytes))
