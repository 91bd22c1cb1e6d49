"""Find the maps that the blocks of any model give, and view them as (B, H, W, C).

Legend: B batch, H W token grid, N = H·W, C channels.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from sema.models.backbone import Backbone
from sema_bench.errors import ProbeError

#: Largest relative difference between the aspect ratios of a grid and its image.
_SAME_SHAPE = 0.1
_LISTS = (nn.Sequential, nn.ModuleList)
Call = tuple[nn.Module, Tensor]
#: Position of a token, as shares of the image's height and width.
Token = tuple[float, float]


def token_grid(height: int, width: int, shape: float, extras: tuple[int, ...] = (0, 1, 2)) -> tuple[int, int, int]:
    """Find the number of extra tokens at the start, and the (H, W) grid of the others.

    A sequence (height 1) may start with class tokens; ``extras`` are their possible numbers. Raise ProbeError if no
    grid of the image's ``shape``, height over width, has as many tokens.
    """
    if height > 1:
        return 0, height, width
    for extra in extras:
        rows = round(math.sqrt(max(1, width - extra) * shape))
        if rows and (width - extra) % rows == 0 and abs(rows**2 / (width - extra) / shape - 1) < _SAME_SHAPE:
            return extra, rows, (width - extra) // rows
    raise ProbeError(f"its sequence of {width} tokens is not a grid of the image's shape, so there is no map to draw")


def grid_position(token: Token, height: int, width: int) -> tuple[int, int]:
    """Find the row and column of the token that contains a position."""
    return min(int(token[0] * height), height - 1), min(int(token[1] * width), width - 1)


def as_map(output: object, model: nn.Module, size: tuple[int, int]) -> Tensor | None:
    """View what a block of ``model`` gives for images of ``size`` as (B, H, W, C), without class tokens.

    Return None if it is no map of the image, or only one token.
    """
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim not in (3, 4):
        return None
    if output.ndim == 4:
        views = [output, output.permute(0, 2, 3, 1)]
        if not (isinstance(model, Backbone) or getattr(model, "output_fmt", "") == "NHWC"):
            views.reverse()
        for view in views:
            if _covers(view.shape[1:3], size):
                return view
        if output.shape[1] != 1:
            return None
        output = output[:, 0]
    if getattr(model, "class_in_middle", False):
        middle = output.shape[1] // 2
        output = torch.cat((output[:, :middle], output[:, middle + 1 :]), dim=1)
    known = getattr(model, "num_prefix_tokens", None)
    try:
        extra, *grid = token_grid(1, output.shape[1], size[0] / size[1], (0, 1, 2) if known is None else (0, known))
    except ProbeError:
        return None
    return output[:, extra:].unflatten(1, grid) if math.prod(grid) > 1 else None


def _covers(grid: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Check whether one stride maps ``size`` to ``grid``, each side rounded up or down."""
    strides = [(side / (tokens + 1), side / max(tokens - 1, 1e-9)) for tokens, side in zip(grid, size, strict=True)]
    smaller = all(1 <= tokens <= side for tokens, side in zip(grid, size, strict=True))
    return smaller and math.prod(grid) > 1 and max(low for low, _ in strides) < min(high for _, high in strides)


@contextlib.contextmanager
def recorded_blocks(model: nn.Module) -> Iterator[list[Call]]:
    """Record the blocks that run, and their outputs: the children of ``model``, and the members of their lists.

    A block ends after the blocks within it.
    """
    calls: list[Call] = []
    handles = [
        block.register_forward_hook(lambda block, args, output: calls.append((block, output)))
        for block in dict.fromkeys(_blocks(model, whole=True))
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _blocks(module: nn.Module, *, whole: bool) -> Iterator[nn.Module]:
    for child in module.children():
        if whole or isinstance(child, _LISTS):
            yield child
            yield from _blocks(child, whole=isinstance(child, _LISTS))


def last_map(model: nn.Module, image: Tensor) -> Tensor:
    """Compute the last feature map (B, H, W, C) of an image batch (B, 3, H, W).

    Our models and those of timm provide it; for any other, take the last block output that is a map.
    """
    size = (image.shape[2], image.shape[3])
    offered: Any = model
    if hasattr(model, "forward_intermediates"):  # timm's
        return cast(Tensor, offered.forward_intermediates(image, indices=1, intermediates_only=True)[-1]).permute(
            0, 2, 3, 1
        )
    if hasattr(model, "forward_features"):
        features = offered.forward_features(image)
        if isinstance(features, list | tuple):
            return cast(Tensor, features[-1])
    with recorded_blocks(model) as calls:
        model(image)
    maps = [view for _, output in calls if (view := as_map(output, model, size)) is not None]
    if not maps:
        raise ProbeError("no block gives a map of more than one token; give a larger image, or leave erf out of --show")
    return maps[-1]
