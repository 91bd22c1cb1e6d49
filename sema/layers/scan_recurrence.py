"""The linear recurrence h_t = a_t h_{t−1} + b_t over a long axis, in about 3·√L vectorised steps.

Legend: G directions (1: forward; 2: the second runs backward), B batch, L = K·S tokens, K chunks of S, E everything
else.

Each chunk runs its own recurrence from zero, all chunks at once; one pass over the K chunk ends carries the states
across; then every chunk runs again from its right start and overwrites b with h. No division and no logarithm: a decay
of 0 or a state of any size is exact. Both directions share each step: direction 1 sits S−1−2t tokens further on than
direction 0 at step t, and a strided view reaches both without a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recur_(b: Tensor, a: Tensor, totals: Tensor, *, reverse: bool = False) -> Tensor:
    """Overwrite ``b`` with the recurrence's h and return it.

    Args:
        b: (G, B, K·S, …), contiguous.
        a: decays, like ``b``.
        totals: product of the decays of each chunk, (G, B, K, …), contiguous.
        reverse: run every direction against its order.
    """
    chunks = totals.shape[2]
    size = b.shape[2] // chunks
    b_, a_ = (x.view(*x.shape[:2], chunks, size, -1) for x in (b, a))
    totals_ = totals.view(*totals.shape[:3], -1)
    end = _at(b_, 3, 0, reverse).clone()  # (G, B, K, E)
    for t in range(1, size):
        torch.addcmul(_at(b_, 3, t, reverse), _at(a_, 3, t, reverse), end, out=end)
    state = torch.zeros_like(end)
    for k in range(chunks - 1):
        start = _at(state, 2, k, reverse)
        torch.addcmul(_at(end, 2, k, reverse), _at(totals_, 2, k, reverse), start, out=_at(state, 2, k + 1, reverse))
    for t in range(size):
        h = _at(b_, 3, t, reverse)
        torch.addcmul(h, _at(a_, 3, t, reverse), state, out=h)
        state = h
    return b


def _at(x: Tensor, dim: int, step: int, reverse: bool) -> Tensor:
    """View index ``step`` of ``dim`` for the first direction and, counted from the end, for the second."""
    last = x.shape[dim] - 1
    first = last - step if reverse else step
    if x.shape[0] == 1:
        return x.select(dim, first)
    sizes, strides = list(x.shape), list(x.stride())
    strides[0] += (last - 2 * first) * strides[dim]
    offset = x.storage_offset() + first * strides[dim]
    del sizes[dim], strides[dim]
    return x.as_strided(sizes, strides, offset)
