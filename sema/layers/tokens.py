"""Split, merge, select and average the tokens of a map and their heads.

Legend: B batch, H W token grid, N = H·W, C channels, h heads, d = C / h head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sema.macs import Grid


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, H, W, C) → (B, h, N, d)."""
    return torch.unflatten(x.flatten(1, 2), -1, (num_heads, -1)).transpose(1, 2)


def split_parts(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """(B, H, W, parts·C) → ``parts`` views (B, h, N, d), such as q, k and v; nothing is copied."""
    return torch.unflatten(x.flatten(1, 2), -1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor, grid: Grid) -> Tensor:
    """(B, h, N, d) → (B, H, W, C)."""
    return torch.unflatten(x.transpose(1, 2).flatten(2), 1, grid)


def chosen_rows(x: Tensor, rows: Tensor | None, dim: int = -2) -> Tensor:
    """Select the slices ``rows`` of ``x`` along ``dim``; None selects all."""
    return x if rows is None else x.index_select(dim, rows)


def token_mean(x: Tensor) -> Tensor:
    """Average over the grid: (B, H, W, C) → (B, 1, 1, C), accumulated in float32 or wider."""
    if x.device.type == "cuda":  # its kernel accumulates in float32 by itself; a cast would be one more launch
        return x.mean(dim=(1, 2), keepdim=True)
    return x.mean(dim=(1, 2), keepdim=True, dtype=wide_dtype(x)).to(x.dtype)


def wide_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype for sums, powers and angles of ``x``: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
