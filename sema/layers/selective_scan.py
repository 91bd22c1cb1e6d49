"""Selective scan: the linear recurrence of state-space models whose coefficients depend on the input.

Paper: Mamba, arXiv 2312.00752.

Legend: G directions, B batch, P Q the two sides of the grid that is scanned (1 and L for a sequence), L = P·Q,
D channels, N states per channel.

Equation, per direction and channel, along the tokens t in row-major order of (P, Q):

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t,   y_t = C_t · h_t,   h_0 = 0

The first direction runs forward, a second one backward. The skip term D·u, the gate and Δ = softplus(δ + bias) are
elementwise and belong to the caller.

FLOPs: 9·G·L·D·N, the count of the Mamba authors. They are elementwise work and never counted as MACs.

One operator, ``sema::selective_scan``, holds the loop: compilers and counters see a single call, inference keeps the
states of one block of channels at a time, and the backward pass recomputes the states instead of storing L·D·N of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sema.layers.tokens import wide_dtype

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

#: Elements of a block's states that a CPU works on at once: two buffers of this size stay in its last-level cache. On a
#: sequence of 4097 tokens with 16 states, 32 channels at a time took 141 ms and all 384 at once 204 ms (one thread).
_BLOCK_ELEMENTS = 1 << 20
#: Shorter runs of channels lose more to short inner loops than they save.
_FEWEST_CHANNELS = 32


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan a grid of tokens in one or two directions; half precision is computed in float32.

    Args:
        u: input (G, B, P, Q, D); may be expanded over G.
        delta: step sizes Δ > 0, (G, B, P, Q, D).
        a: decay rates A < 0, (G, D, N).
        b: input weights B_t, (G, B, P, Q, N).
        c: output weights C_t, (G, B, P, Q, N).

    Returns:
        y (G, B, P, Q, D), each output at its input token's position, in float32 or float64.

    Raises:
        ValueError: shapes that do not fit, or G not 1 or 2.
    """
    check_shapes(u, delta, a, b, c)
    return torch.ops.sema.selective_scan(*(x.to(wide_dtype(delta)) for x in (u, delta, a, b, c)))


def check_shapes(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """Raise ValueError unless the shapes fit together as ``selective_scan`` says."""
    shape = delta.shape
    if len(shape) != 5 or shape[0] not in (1, 2) or 0 in shape:
        raise ValueError(f"delta must be (G, B, P, Q, D) with one or two directions; got {tuple(shape)}")
    states = (*shape[:4], a.shape[-1])
    wanted = {"u": shape, "a": (shape[0], shape[4], a.shape[-1]), "b": states, "c": states}
    for (name, expected), given in zip(wanted.items(), (u, a, b, c), strict=True):
        if tuple(given.shape) != tuple(expected):
            raise ValueError(f"{name} must be {tuple(expected)}; got {tuple(given.shape)}")


def selective_scan_reference(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan the tokens one by one, with the arguments and the result of ``selective_scan``."""
    grid = u.shape[2:4]
    u, delta, b, c = (x.flatten(2, 3) for x in (u, delta, b, c))  # (G, B, L, ·)
    directions = []
    for g in range(u.shape[0]):
        tokens = range(u.shape[2]) if g == 0 else range(u.shape[2] - 1, -1, -1)
        state = u.new_zeros(u.shape[1], u.shape[3], a.shape[-1])  # (B, D, N)
        outputs = {}
        for t in tokens:
            decay = torch.exp(delta[g, :, t, :, None] * a[g])
            state = decay * state + (delta[g, :, t] * u[g, :, t]).unsqueeze(-1) * b[g, :, t].unsqueeze(1)
            outputs[t] = (state * c[g, :, t].unsqueeze(1)).sum(-1)
        directions.append(torch.stack([outputs[t] for t in range(u.shape[2])], dim=1))
    return torch.unflatten(torch.stack(directions), 2, grid)


def scan_flops(tokens: int, channels: int, states: int, *, skip: bool, gate: bool = False) -> int:
    """Count the FLOPs of one image: 9·L·D·N, and L·D each for the skip term D·u and for a gate.

    ``channels`` is D summed over the directions.
    """
    return tokens * channels * (9 * states + skip + gate)


def scan_scratch_bytes(delta: Tensor, a: Tensor) -> int:
    """Compute the peak memory of ``selective_scan`` on top of its output, from shapes only."""
    each, length, padded, chunks = _block_sizes(delta, a)
    states = a.shape[-1]
    elements = 2 * padded * states + max(length + chunks * states, 3 * chunks * states)
    return int(each * elements * delta.element_size())


def scan_backward_scratch_bytes(delta: Tensor, a: Tensor) -> int:
    """Compute the peak memory of the gradient of ``selective_scan`` on top of its results, from shapes only."""
    each, length, padded, chunks = _block_sizes(delta, a)
    # Padded: states, decays, ∂L/∂h and carried sums. Not padded: the earlier states, ∂L/∂(ΔA) and its product with Δ.
    return int(each * a.shape[-1] * (4 * padded + 3 * length + chunks) * delta.element_size())


def _block_sizes(delta: Tensor, a: Tensor) -> tuple[int, int, int, int]:
    """Return (channels of a block over all groups and images, tokens, tokens padded to whole chunks, chunks)."""
    groups, batch, height, width, _ = delta.shape
    block = next(iter(_blocks(delta, a)))
    size, chunks = _chunks(height * width)
    return groups * batch * (block.stop - block.start), height * width, chunks * size, chunks


@torch.library.custom_op(
    "sema::selective_scan", mutates_args=(), schema="(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) -> Tensor"
)
def _scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    y = torch.empty_like(delta, memory_format=torch.contiguous_format)
    for part in _blocks(delta, a):
        _scan_block(u[..., part], delta[..., part], a[:, part], b, c, y[..., part])
    return y


def _scan_block(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, y: Tensor) -> None:
    """Scan some channels into ``y``; their states are freed before the next ones begin."""
    states, _, _ = _states(u, delta, a, b)
    if a.shape[-1] == 1:
        torch.mul(states.squeeze(-2), c, out=y)
    else:
        torch.sum(states.mul_(c.unsqueeze(-1)), dim=-2, out=y)


def _scan_fake(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.empty_like(delta, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "sema::selective_scan_backward",
    mutates_args=(),
    schema="(Tensor dy, Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
    dy: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # With g_t = ∂L/∂h_t and s_t = exp(Δ_t A) g_t, the gradient obeys the same recurrence in reverse:
    # g_t = C_t dy_t + s_{t+1},  s_t = exp(Δ_t A) (C_t dy_t + s_{t+1}).
    du, ddelta, da = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, a))
    db, dc = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (b, c))
    length = delta.shape[2] * delta.shape[3]
    for part in _blocks(delta, a):
        u_, delta_, a_, dy_ = u[..., part], delta[..., part], a[:, part], dy[..., part]
        states, decay, totals = _states(u_, delta_, a_, b)
        dc.add_((states * dy_.unsqueeze(-2)).sum(-1))
        dh = torch.zeros_like(decay)
        grad = dh[:, :, :length].unflatten(2, delta.shape[2:4])
        torch.mul(dy_.unsqueeze(-2), c.unsqueeze(-1), out=grad)
        carried = _recur_(decay * dh, decay, totals, reverse=True)  # s
        grad.add_(_neighbour(carried, length, later=True).unflatten(2, delta.shape[2:4]))  # now g
        # ∂L/∂(ΔA)_t = g_t exp(Δ_t A) h_{t−1}
        earlier = _neighbour(states.flatten(2, 3), length, later=False)
        dlog = (earlier * decay[:, :, :length]).unflatten(2, delta.shape[2:4]).mul_(grad)
        da[:, part] = (dlog * delta_.unsqueeze(-2)).sum(dim=(1, 2, 3)).transpose(1, 2)
        by_input = (grad * b.unsqueeze(-1)).sum(-2)
        torch.mul(by_input, delta_, out=du[..., part])
        ddelta[..., part] = (dlog * a_.transpose(1, 2)[:, None, None, None]).sum(-2).addcmul_(by_input, u_)
        db.add_((grad * (delta_ * u_).unsqueeze(-2)).sum(-1))
    return du, ddelta, da, db, dc


@_scan_backward.register_fake
def _scan_backward_fake(dy: Tensor, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, delta, a, b, c))


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.ops.sema.selective_scan_backward(dy, *ctx.saved_tensors))


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def complete(scan: CustomOpDef) -> None:
    """Register the shapes and the gradient of another operator that computes the scan."""
    scan.register_fake(_scan_fake)
    scan.register_autograd(_backward, setup_context=_setup)


complete(_scan)


def _blocks(delta: Tensor, a: Tensor) -> Iterator[slice]:
    """Cut the channels into blocks of about ``_BLOCK_ELEMENTS`` states on a CPU; on CUDA this would add launches."""
    channels = delta.shape[4]
    fitting = _BLOCK_ELEMENTS // (math.prod(delta.shape[:4]) * a.shape[-1])
    width = channels if delta.device.type == "cuda" else min(channels, max(_FEWEST_CHANNELS, fitting))
    width = -(-channels // -(-channels // width))  # blocks of even width
    for start in range(0, channels, width):
        yield slice(start, start + width)


def _chunks(length: int) -> tuple[int, int]:
    """Return (tokens of a chunk, chunks) for ``length`` tokens: about √L of each."""
    size = math.isqrt(length - 1) + 1
    return size, -(-length // size)


def _states(u: Tensor, delta: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the states h (G, B, P, Q, N, D), the decays (G, B, K·S, N, D), and their products over each chunk.

    The tokens are padded to K chunks of S ≈ √L tokens; a padded token decays by 1 and adds 0, so it changes no state.
    """
    groups, batch, height, width, channels = delta.shape
    length, states = height * width, a.shape[-1]
    size, chunks = _chunks(length)
    decay = delta.new_empty(groups, batch, chunks * size, states, channels)
    added = torch.empty_like(decay)
    decay[:, :, length:] = 0
    added[:, :, length:] = 0
    by_token = [x[:, :, :length].unflatten(2, (height, width)) for x in (decay, added)]
    torch.mul(delta.unsqueeze(-2), a.transpose(1, 2)[:, None, None, None], out=by_token[0])
    totals = decay.unflatten(2, (chunks, size)).sum(3).exp_()
    decay.exp_()
    torch.mul((delta * u).unsqueeze(-2), b.unsqueeze(-1), out=by_token[1])
    _recur_(added, decay, totals)
    return by_token[1], decay, totals


def _recur_(b: Tensor, a: Tensor, totals: Tensor, *, reverse: bool = False) -> Tensor:
    """Overwrite ``b`` with h_t = a_t h_{t−1} + b_t, in about 3·√L vectorised steps, and return it.

    Each chunk of S of the L = K·S tokens runs its own recurrence from zero, all chunks at once. One pass over the K
    chunk ends carries the states across. Then every chunk runs again from its correct start. There is no division and
    no logarithm, so a decay of 0 or a state of any size is exact. Both directions share each step: direction 1 is
    S−1−2t tokens ahead of direction 0 at step t, and a strided view reaches both without a copy.

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
    end = _at(b_, 3, 0, reverse).clone()  # (G, B, K, everything else)
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


def _neighbour(x: Tensor, length: int, *, later: bool) -> Tensor:
    """Shift ``x`` (G, B, ≥ length, …) by one token, so that each of ``length`` tokens sees its neighbour; 0 outside.

    Earlier and later follow the order in which each direction runs.
    """
    out = torch.zeros_like(x[:, :, :length])
    for g in range(x.shape[0]):
        if later == (g == 0):
            out[g, :, :-1] = x[g, :, 1:length]
        else:
            out[g, :, 1:] = x[g, :, : length - 1]
    return out
