"""The selective scan in three launches of Triton kernels, for CUDA; see ``sema.layers.selective_scan``.

Legend: G directions, B batch, L tokens, D channels, N states, S tokens of a chunk, K = ⌈L/S⌉ chunks.

1. every chunk runs from zero and stores its last state and the sum of its steps Δ (a product of decays is the
   exponential of A·ΣΔ);
2. one pass over the chunks turns last states into first states;
3. every chunk runs again from its first state and writes y.

Chunks, channels, images and directions run in parallel, so even one image fills the device. States stay in registers:
memory beyond the output is 1/S of one state per token. The backward pass is PyTorch's.

Chunks, images and directions share a grid's first axis, where CUDA allows 2³¹ − 1 programs; the others take 65,535.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from sema.layers.selective_scan import check_shapes, complete
from sema.layers.tokens import wide_dtype

_CHUNK = 64
MAX_STATES = 256
#: Channels of a program, and their states in total; twice as many spill registers (tests/sema/test_scan_on_cuda.py).
_CHANNELS, _STATES_IN_REGISTERS = 64, 2048


@triton.jit
def _run_chunk(
    u_ptr, delta_ptr, a_ptr, b_ptr, c_ptr, state_ptr, steps_ptr, y_ptr,
    batch, length, channels, states, chunks,
    CHUNK: tl.constexpr, CHANNELS: tl.constexpr, STATES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    image = (tl.program_id(0) // chunks).to(tl.int64)  # g · B + image of the batch
    chunk = tl.program_id(0) % chunks
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    in_d, in_n = d < channels, n < states
    in_dn = in_d[:, None] & in_n[None, :]
    direction = image // batch
    a = tl.load(a_ptr + (direction * channels + d[:, None]) * states + n[None, :], mask=in_dn, other=0.0)
    at_state = state_ptr + ((image * chunks + chunk) * channels + d[:, None]) * states + n[None, :]
    h = tl.load(at_state, mask=in_dn, other=0.0) if LAST else tl.zeros_like(a)
    total = tl.sum(h, axis=1) * 0.0
    for step in range(CHUNK):
        t = chunk * CHUNK + step
        token = image * length + tl.where(direction == 0, t, length - 1 - t)
        # Past the end Δ is 0, so the state stays the same. (Triton 3.9's interpreter takes no scalar mask.)
        here = in_d & (d * 0 + t < length)
        delta = tl.load(delta_ptr + token * channels + d, mask=here, other=0.0)
        u = tl.load(u_ptr + token * channels + d, mask=here, other=0.0)
        b = tl.load(b_ptr + token * states + n, mask=in_n & (n * 0 + t < length), other=0.0)
        h = tl.exp(delta[:, None] * a) * h + (delta * u)[:, None] * b[None, :]
        if LAST:
            c = tl.load(c_ptr + token * states + n, mask=in_n & (n * 0 + t < length), other=0.0)
            tl.store(y_ptr + token * channels + d, tl.sum(h * c[None, :], axis=1), mask=here)
        else:
            total += delta
    if not LAST:
        tl.store(at_state, h, mask=in_dn)
        tl.store(steps_ptr + (image * chunks + chunk) * channels + d, total, mask=in_d)


@triton.jit
def _carry(
    a_ptr, state_ptr, steps_ptr, batch, channels, states, chunks,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, STATES)
    in_d = d < channels
    in_dn = in_d[:, None] & (n < states)[None, :]
    a = tl.load(a_ptr + (image // batch * channels + d[:, None]) * states + n[None, :], mask=in_dn, other=0.0)
    first = tl.zeros_like(a)
    for chunk in range(chunks):
        at_state = state_ptr + ((image * chunks + chunk) * channels + d[:, None]) * states + n[None, :]
        last = tl.load(at_state, mask=in_dn, other=0.0)
        steps = tl.load(steps_ptr + (image * chunks + chunk) * channels + d, mask=in_d, other=0.0)
        tl.store(at_state, first, mask=in_dn)
        first = tl.exp(steps[:, None] * a) * first + last


@torch.library.custom_op(
    "sema::selective_scan_triton",
    mutates_args=(),
    schema="(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c) -> Tensor",
)
def _scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    directions, batch, _, _, channels = delta.shape
    states, length = a.shape[-1], delta.shape[2] * delta.shape[3]
    images, chunks = directions * batch, triton.cdiv(length, _CHUNK)
    u, delta, a, b, c = (x.contiguous() for x in (u, delta, a, b, c))
    y = torch.empty_like(delta)
    state = delta.new_empty(images, chunks, channels, states)
    steps = delta.new_empty(images, chunks, channels)
    sizes, shape = (batch, length, channels, states, chunks), _tile(channels, states)
    blocks = triton.cdiv(channels, shape["CHANNELS"])
    run, carry = _run_chunk[(images * chunks, blocks)], _carry[(images, blocks)]
    with torch.cuda.device_of(delta):  # Triton launches on the current device, wherever the tensors are
        run(u, delta, a, b, c, state, steps, y, *sizes, CHUNK=_CHUNK, LAST=False, **shape)
        carry(a, state, steps, batch, channels, states, chunks, **shape)
        run(u, delta, a, b, c, state, steps, y, *sizes, CHUNK=_CHUNK, LAST=True, **shape)
    return y


def _tile(channels: int, states: int) -> dict[str, int]:
    """Choose how many channels one program holds, and how many states of each."""
    padded = max(2, triton.next_power_of_2(states))
    width = min(_CHANNELS, _STATES_IN_REGISTERS // padded, triton.next_power_of_2(channels))
    return {"CHANNELS": width, "STATES": padded}


complete(_scan)


def triton_scratch_bytes(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> int:
    """Compute the peak memory of ``selective_scan_triton`` on top of its output, from shapes and strides."""
    directions, batch, height, width, channels = delta.shape
    chunks = triton.cdiv(height * width, _CHUNK)
    states = directions * batch * chunks * channels * (a.shape[-1] + 1) * delta.element_size()
    return int(states + sum(x.nbytes for x in (u, delta, a, b, c) if not x.is_contiguous()))


def selective_scan_triton(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan like ``sema.layers.selective_scan.selective_scan``, with the Triton kernels.

    Raises:
        ValueError: the shapes do not fit, the tensors are not on CUDA, or there are more than 256 states.
    """
    check_shapes(u, delta, a, b, c)
    if delta.device.type not in ("cuda", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"scan='triton' runs on CUDA; got tensors on {delta.device.type}: use scan='torch' there")
    if a.shape[-1] > MAX_STATES:
        raise ValueError(f"scan='triton' holds at most {MAX_STATES} states of a channel; got {a.shape[-1]}")
    return torch.ops.sema.selective_scan_triton(*(x.to(wide_dtype(delta)) for x in (u, delta, a, b, c)))
