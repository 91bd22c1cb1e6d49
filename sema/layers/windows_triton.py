"""Softmax attention in windows as one Triton kernel, for CUDA: reads queries, keys and values where they lie.

Legend: B batch, H W token grid, C channels, h heads, d = C / h, w window size, T tokens of a window, padded.

A program is one window of one head. It loads the tokens of its window straight from the map that the projection wrote,
keeps the T×T scores in registers, and writes the result into a map, plus what is to be added to it: no windows are cut
out, and none are merged. Windows at the edge are smaller; their missing tokens are masked.
"""

from __future__ import annotations

import os

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sema.layers.windows import split_windows, window_pairs, window_regions, window_slots

#: Tokens of a window whose scores fit into the registers of a program.
MAX_TOKENS = 256
_SMALLEST_DOT = 16


@triton.jit
def _attend(
    qkv_ptr, map_ptr, row_ptr, out_ptr, height, width, down, across, scale,
    HEADS: tl.constexpr, DIM: tl.constexpr, SIDE: tl.constexpr, TOKENS: tl.constexpr, LANES: tl.constexpr,
    HAS_MAP: tl.constexpr, HAS_ROW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    window = tl.program_id(0)
    head = tl.program_id(1)
    image = (window // (down * across)).to(tl.int64)
    t = tl.arange(0, TOKENS)
    row = window // across % down * SIDE + t // SIDE
    column = window % across * SIDE + t % SIDE
    here = (t < SIDE * SIDE) & (row < height) & (column < width)
    lane = tl.arange(0, LANES)
    inside = here[:, None] & (lane < DIM)[None, :]
    token = (image * height + row) * width + column
    channel = head * DIM + lane
    at = token[:, None] * (3 * HEADS * DIM) + channel[None, :]
    q = tl.load(qkv_ptr + at, mask=inside, other=0.0)
    k = tl.load(qkv_ptr + at + HEADS * DIM, mask=inside, other=0.0)
    v = tl.load(qkv_ptr + at + 2 * HEADS * DIM, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(here[None, :], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    total = tl.sum(scores, axis=1)
    out = tl.dot(scores.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
    at = token[:, None] * (HEADS * DIM) + channel[None, :]
    if HAS_MAP:
        out += tl.load(map_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ROW:
        added = tl.load(row_ptr + image * (HEADS * DIM) + channel, mask=lane < DIM, other=0.0)
        out += added.to(tl.float32)[None, :]
    tl.store(out_ptr + at, out.to(q.dtype), mask=inside)


@torch.library.custom_op(
    "sema::window_attention_triton",
    mutates_args=(),
    schema="(Tensor qkv, Tensor? plus_map, Tensor? plus_row, int num_heads, int window_size, float scale) -> Tensor",
)
def _windows(
    qkv: Tensor, plus_map: Tensor | None, plus_row: Tensor | None, num_heads: int, window_size: int, scale: float
) -> Tensor:
    batch, height, width, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    dim = channels // 3 // num_heads
    down, across = triton.cdiv(height, window_size), triton.cdiv(width, window_size)
    tokens = max(_SMALLEST_DOT, triton.next_power_of_2(window_size**2))
    allowed = qkv.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    added = [out if part is None else part.contiguous() for part in (plus_map, plus_row)]
    _attend[(batch * down * across, num_heads)](
        qkv.contiguous(), *added, out, height, width, down, across, scale,
        HEADS=num_heads, DIM=dim, SIDE=window_size, TOKENS=tokens,
        LANES=max(_SMALLEST_DOT, triton.next_power_of_2(dim)),
        HAS_MAP=plus_map is not None, HAS_ROW=plus_row is not None, PRECISION="tf32" if allowed else "ieee",
        num_warps=8 if tokens > 64 else 4,
    )  # fmt: skip
    return out


@_windows.register_fake
def _windows_fake(
    qkv: Tensor, plus_map: Tensor | None, plus_row: Tensor | None, num_heads: int, window_size: int, scale: float
) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


@register_flop_formula(torch.ops.sema.window_attention_triton)  # type: ignore[untyped-decorator,unused-ignore]
def _flops(
    qkv: tuple[int, ...], plus_map: object, plus_row: object, num_heads: int, window_size: int, *_: object, **__: object
) -> int:
    batch, height, width, channels = qkv
    return 2 * batch * 2 * (channels // 3) * window_pairs((height, width), window_size)


def _setup(ctx: object, inputs: tuple[object, ...], output: Tensor) -> None:
    qkv, plus_map, plus_row, *settings = inputs
    ctx.save_for_backward(qkv)  # type: ignore[attr-defined]
    ctx.settings, ctx.added = settings, (plus_map is not None, plus_row is not None)  # type: ignore[attr-defined]


def _backward(ctx: object, grad: Tensor) -> tuple[object, ...]:
    """Make the weights of each region again; the gradient of a softmax is p·(g − Σ p·g)."""
    (qkv,) = ctx.saved_tensors  # type: ignore[attr-defined]
    num_heads, window_size, scale = ctx.settings  # type: ignore[attr-defined]
    has_map, has_row = ctx.added  # type: ignore[attr-defined]
    parts = [torch.empty_like(grad) for _ in range(3)]
    for region in window_regions((qkv.shape[1], qkv.shape[2]), window_size):
        q, k, v = split_windows(qkv, region, parts=3, num_heads=num_heads).unbind(0)
        (g,) = split_windows(grad, region, parts=1, num_heads=num_heads).unbind(0)
        weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=-1)
        of_weights = g @ v.transpose(-2, -1)
        of_scores = weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True)) * scale
        found = (of_scores @ k, of_scores.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ g)
        for part, gradient in zip(parts, found, strict=True):
            slots = window_slots(part, region, num_heads)
            slots.copy_(gradient.view(slots.shape))
    of_row = grad.sum(dim=(1, 2), keepdim=True) if has_row else None
    return torch.cat(parts, dim=-1), grad if has_map else None, of_row, None, None, None


_windows.register_autograd(_backward, setup_context=_setup)


def attend_in_windows_triton(
    qkv: Tensor,
    *,
    num_heads: int,
    window_size: int,
    scale: float,
    plus_map: Tensor | None = None,
    plus_row: Tensor | None = None,
) -> Tensor:
    """Softmax attention inside each window, (B, H, W, 3C) → (B, H, W, C), plus a map and a row.

    Args:
        qkv: queries, keys and values, one after the other in the last dimension; float32, bfloat16 or float16.
        num_heads: heads h.
        window_size: side of a window in tokens, at most 16.
        scale: factor of the scores.
        plus_map: what is added, (B, H, W, C).
        plus_row: what is added to every token, (B, 1, 1, C).

    Raises:
        ValueError: the tensors are not on CUDA or of another dtype, or the windows are too large.
    """
    if qkv.device.type not in ("cuda", "meta") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend='triton' runs on CUDA; got tensors on {qkv.device.type}: use backend='torch' there")
    if qkv.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"backend='triton' computes in float32, bfloat16 and float16; got {qkv.dtype}")
    if window_size**2 > MAX_TOKENS:
        raise ValueError(f"backend='triton' holds windows of at most {MAX_TOKENS} tokens; got {window_size}²")
    out: Tensor = torch.ops.sema.window_attention_triton(qkv, plus_map, plus_row, num_heads, window_size, scale)
    return out
