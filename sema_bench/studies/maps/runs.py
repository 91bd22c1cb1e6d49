"""Build a model by name and draw its maps."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from sema_bench.data.base import Unreadable
from sema_bench.data.datasets import TestImages
from sema_bench.errors import UsageError
from sema_bench.machine.host_memory import available_memory_bytes
from sema_bench.report.figure_style import render
from sema_bench.spec import units as fmt
from sema_bench.spec.data_source import DataSpec
from sema_bench.studies.dispersion.study import network_input
from sema_bench.studies.maps.coefficients import attention_maps, receptive_field
from sema_bench.studies.maps.figure import maps_figure
from sema_bench.worker.build_model import build_model, build_with_weights, read_weights, usage_errors
from sema_bench.worker.forecast import forecast


def draw_maps(
    name: str,
    checkpoint: Path | None,
    spec: DataSpec,
    index: int,
    size: tuple[int, int],
    where: tuple[float, float],
    *,
    samples: int,
    seed: int,
) -> dict[str, bytes]:
    """Draw the maps as ``svg`` and ``png``."""
    images = TestImages(spec)
    if index >= len(images):
        raise UsageError(f"--index: there are {len(images)} images; got {index}")
    torch.manual_seed(seed)
    with usage_errors(f"{name}: "):
        if checkpoint:
            model = build_with_weights(name, size, read_weights(checkpoint))
        else:
            model = build_model(name, size, classes=len(images.classes))
        model.eval()
        _check_memory(model, size, min(samples, len(images)))
        image = images.sample(index, size)
        if isinstance(image, Unreadable):
            raise UsageError(f"{image.name} cannot be read: {image.reason}")
        pixels, label = image
        maps = attention_maps(model, network_input(pixels), where)
        several = [images.sample(i, size) for i in range(min(samples, len(images)))]
        shown = [s[0] for s in several if not isinstance(s, Unreadable)] or [pixels]
        field = receptive_field(model, list(map(network_input, shown)), where)
    weights = checkpoint.name if checkpoint else "random weights"
    title = f"{name}, {weights}, {spec}, image {index} (class {images.classes[label]})"
    figure = maps_figure(pixels, where, maps, field, title=title)
    return {kind: render(figure, kind) for kind in ("svg", "png")}


def _check_memory(model: nn.Module, size: tuple[int, int], samples: int) -> None:
    """Raise UsageError if the gradients of one image, and the images, do not fit into memory."""
    free = available_memory_bytes()
    try:
        step = forecast(copy.deepcopy(model).to("meta"), (1, 3, *size), train=True)
    except Exception:  # a model may do anything to a tensor without values
        return
    needed = step.predicted_peak_bytes + samples * step.input_bytes
    if needed > free:
        raise UsageError(
            f"maps at {size[0]}x{size[1]} need about {fmt.size(needed)} of memory, and {fmt.size(free)} are free; "
            "give a smaller --res or fewer --samples"
        )
