"""Whether a training step fits into memory, asked before the first one: otherwise the kernel kills the process."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from sema_bench.errors import UsageError
from sema_bench.machine.device_memory import WORKER_BYTES, capacity_bytes
from sema_bench.machine.processes import count_of_processes
from sema_bench.spec import units as fmt
from sema_bench.spec.recipe import Recipe
from sema_bench.training.devices import Distributed
from sema_bench.worker.forecast import forecast
from sema_bench.worker.training_step import checkpoint_blocks

#: A step certainly fits if this many times the bytes of its images are free: no model keeps that many activations.
_PLENTY = 1000
#: The forecast was within 3 % of what was measured; the rest is for the images that wait.
_MARGIN = 1.08


def check_step_fits(model: nn.Module, recipe: Recipe, place: Distributed) -> None:
    """Refuse a batch whose training step does not fit into the memory that is free.

    Args:
        model: on its device; left as it is.
        recipe: batch, parts, size and precision.
        place: device, and how many processes share the batch.

    Raises:
        UsageError: it does not fit; the message says which ``accumulate`` does.
    """
    free = capacity_bytes(str(place.device))
    if free is None:
        return
    if place.device.type == "cpu":
        free //= count_of_processes("LOCAL_WORLD_SIZE")
    free -= WORKER_BYTES
    part = recipe.batch // (recipe.accumulate * place.world)
    if part * _image_bytes(recipe) * _PLENTY + 8 * _weights_bytes(model) < free:
        return
    needed = _needed_bytes(model, recipe, place, part)
    if needed is None or needed <= free:
        return
    height, width = recipe.size
    raise UsageError(
        f"a training step on {part} images of {height}x{width} needs about {fmt.size(needed)} of memory, and "
        f"{fmt.size(free)} are free; {_advice(model, recipe, place, part, needed, free)}"
    )


def _advice(model: nn.Module, recipe: Recipe, place: Distributed, part: int, needed: int, free: int) -> str:
    """Name the fewest parts of the batch that fit; memory grows linearly with the images of a part."""
    split = recipe.model_copy(update={"accumulate": max(2, recipe.accumulate)})  # whose gradients stay between parts
    one, needed = _needed_bytes(model, split, place, 1), _needed_bytes(model, split, place, part) or needed
    if one is None or one > free:
        return "not even one image fits; give a smaller --res or model"
    per_image = (needed - one) / (part - 1)
    most = 1 + int((free - one) / per_image)
    shares = recipe.batch // place.world
    fitting = next(share for share in range(min(most, shares), 0, -1) if shares % share == 0)
    return (
        f"parts of {fitting} images fit: add --set accumulate={shares // fitting} for the same batch of "
        f"{recipe.batch}, or train with --batch {fitting * place.world}"
    )


def _needed_bytes(model: nn.Module, recipe: Recipe, place: Distributed, images: int) -> int | None:
    """Predict what a step on ``images`` takes beside the weights that are there already; None where nobody can tell."""
    # Without a second set of weights, where memory is short.
    memo: dict[int, Any] = {id(b): b.to("meta") for b in model.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    shapes = copy.deepcopy(model, memo)
    if recipe.checkpointing:
        checkpoint_blocks(shapes)
    dtype = getattr(torch, recipe.amp, torch.float32)
    try:
        with torch.autocast(place.device.type, dtype, enabled=recipe.amp != "off"):
            found = forecast(
                shapes,
                (images, 3, *recipe.size),
                device=str(place.device),
                memory_format=torch.channels_last,
                train=True,
            )
    except Exception:  # a model may do anything to a tensor without values
        return None
    gradients_kept = found.weights_bytes if recipe.accumulate > 1 else 0
    average = found.weights_bytes if recipe.ema else 0
    return round(_MARGIN * (found.peak_bytes - found.weights_bytes + gradients_kept + average))


def _image_bytes(recipe: Recipe) -> int:
    return 3 * recipe.size[0] * recipe.size[1] * 4


def _weights_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
