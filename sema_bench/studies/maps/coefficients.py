"""Compute what one token attends to: its coefficients in each head, and their product over the layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sema.attention.base import Attention
from sema_bench.errors import ProbeError, UsageError
from sema_bench.studies.dispersion.coefficients import HELD, attention_inputs
from sema_bench.studies.maps.last_map import Token, grid_position, token_grid

#: Extra tokens, H, W.
_Grid = tuple[int, int, int]


@dataclass(frozen=True)
class AttentionMap:
    """The coefficients of one token, as maps over the token grid."""

    layer: int  # index of the attention in the model
    heads: NDArray[np.float64]  # (h, H, W), without class tokens


def has_coefficients(model: nn.Module) -> bool:
    """Check whether some attention of ``model`` weighs values by coefficients."""
    return any(isinstance(module, Attention) and module.has_coefficients for module in model.modules())


@torch.inference_mode()
def attention_maps(model: nn.Module, image: Tensor, token: Token | None) -> list[AttentionMap]:
    """Compute a map for each head of each attention with coefficients of ``model``, in eval mode.

    ``image`` is (1, 3, H, W), normalised; ``token`` is None for the class token.
    """
    maps = []
    for layer, attention, x in attention_inputs(model, image):
        extra, height, width = _grid(x, image)
        query = torch.tensor([_index(token, (extra, height, width))], device=x.device)
        weights = attention.coefficients(x, query)[0, :, 0, extra:]
        _check_finite(weights, layer)
        maps.append(AttentionMap(layer, weights.unflatten(1, (height, width)).double().cpu().numpy()))
    return maps


@torch.inference_mode()
def rollout(model: nn.Module, image: Tensor, token: Token | None) -> NDArray[np.float64]:
    """Compute a token's row of attention rollout (Abnar & Zuidema, arXiv 2005.00928) as a map; see ``attention_maps``.

    The row is that of the product over layers, the last one leftmost, of ½ I + ½ A, where A is the mean of the heads'
    coefficients. These are taken without sign and divided by their sum, so that every row of A sums to one.

    The paper has one grid. Where a network halves it, the share of a token is divided evenly among the tokens that it
    covers in the layer before.
    """
    share, grid = torch.empty(0), (0, 0, 0)
    for layer, attention, x in reversed(attention_inputs(model, image)):
        before = _grid(x, image)
        if not len(share):
            share = torch.zeros(x.shape[1] * x.shape[2], dtype=x.dtype, device=x.device)
            share[_index(token, before)] = 1.0
        elif before != grid:
            share = _spread(share, grid, before)
        mixed = torch.zeros_like(share)
        for rows in share.nonzero()[:, 0].split(max(1, HELD // (len(share) * attention.num_heads))):
            weights = attention.coefficients(x, rows)[0].abs()
            mixed += share[rows] @ (weights / weights.sum(dim=-1, keepdim=True)).mean(dim=0)
        _check_finite(mixed, layer)
        share, grid = (share + mixed) / 2, before
    row: NDArray[np.float64] = share[grid[0] :].reshape(grid[1:]).double().cpu().numpy()
    return row


def _grid(x: Tensor, image: Tensor) -> _Grid:
    return token_grid(x.shape[1], x.shape[2], image.shape[2] / image.shape[3])


def _index(token: Token | None, grid: _Grid) -> int:
    extra, height, width = grid
    if token is None and not extra:
        raise UsageError("--token class: this model has no class token; give a position such as 0.5,0.5")
    row, column = grid_position(token or (0, 0), height, width)
    return extra + row * width + column if token else 0


def _spread(share: Tensor, coarse: _Grid, fine: _Grid) -> Tensor:
    """Divide the share of each token of a coarse grid evenly among those of a fine grid that it covers."""
    numbers = torch.arange(len(share), dtype=torch.float64, device=share.device).reshape(1, 1, *coarse[1:])
    owner = F.interpolate(numbers, size=fine[1:], mode="nearest").long().flatten()
    return (share / owner.bincount(minlength=len(share)))[owner]


def _check_finite(weights: Tensor, layer: int) -> None:
    if not torch.isfinite(weights).all():
        raise ProbeError(f"the coefficients of attention {layer + 1} are not finite; check the weights")
