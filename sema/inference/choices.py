"""Choose the fastest kernel on this machine.

None is always the fastest. On some CPUs oneDNN's packed products are twice as fast as torch's own; on others MKL's are
faster. One call of oneDNN may cost more than a small product, and an activation in its epilogue more than a pass of
its own. Some CPUs multiply float32 faster than bfloat16. Kernels are timed once for each shape, dtype and number of
threads; the user's cache keeps the result.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sema.inference.fused import FusedConv2d, FusedLinear, Kernel, cast_for, has_mkl
from sema.kernels.library import cache_folder, kernels_digest
from sema.kernels.softmax_attention import softmax_attention_native

#: Changes whenever kernels are timed in another way.
_VERSION = 2
#: With more rows the time per row stays the same, so they are not timed.
_MOST_ROWS = 4096
#: Time at most this many input numbers; larger batches are cut.
_MOST_NUMBERS = 1 << 24
#: Rounds of timing after the first: more than the fewest while they have taken less than so many seconds.
_FEWEST_ROUNDS, _MOST_ROUNDS, _ROUNDS_S = 7, 30, 0.1
#: In a network, the weights of most products have left the L2 cache when they are needed again, so that a product is
#: timed with several copies of its weights.
_COPIES_BYTES, _MOST_COPIES = 8 << 20, 8
_CPU = torch.device("cpu")
#: oneDNN's epilogue may take longer for them than a pass of their own.
_SLOW_EPILOGUES = ("gelu", "silu")
#: A turn repeats a small product for at least this long.
_TURN_S = 2e-4


def packed_kernels(act: str, dtype: torch.dtype) -> tuple[Kernel, ...]:
    """List oneDNN's kernels that may be the fastest for an activation and a dtype."""
    apart: tuple[Kernel, ...] = ("oneDNN, activation apart",) if act in _SLOW_EPILOGUES else ()
    in_float32: tuple[Kernel, ...] = ("oneDNN, float32",) if dtype != torch.float32 else ()
    return ("oneDNN", *apart, *in_float32)


def fastest_product(
    weight: Tensor, bias: Tensor | None, *, act: str, rows: int, dtype: torch.dtype = torch.float32
) -> Kernel:
    """Choose the fastest kernel of a product of ``rows`` rows in ``dtype`` with ``weight`` (out, in)."""
    outputs, inputs = weight.shape
    rows = min(rows, _MOST_ROWS)
    example = torch.full((rows, inputs), 0.5, dtype=dtype)
    copies = min(_MOST_COPIES, math.ceil(_COPIES_BYTES / max(1, weight.numel() * dtype.itemsize)))

    def build(kernel: Kernel) -> Callable[[], object]:
        parts = cast_for(kernel, weight, bias, dtype=dtype)
        forms = itertools.cycle([FusedLinear(*parts, act=act, kernel=kernel, rows=rows) for _ in range(copies)])
        return lambda: next(forms)(example)

    mkl: tuple[Kernel, ...] = ("MKL",) if has_mkl() else ()
    kernels = (*packed_kernels(act, dtype), "torch", *mkl)
    return _fastest(f"product {rows}x{inputs}x{outputs} {act}", dtype, kernels, build)


def fastest_convolution(
    kernels: Sequence[Kernel],
    build: Callable[[Kernel, Sequence[int]], FusedConv2d],
    *,
    name: str,
    size: Sequence[int],
    dtype: torch.dtype,
    slices: int = 1,
) -> Kernel:
    """Choose the fastest kernel of a convolution.

    Args:
        kernels: two or more.
        build: builds the convolution with a kernel for a size.
        name: convolutions of one name and size share the result.
        size: (B, C, H, W) of the input.
        dtype: of the input.
        slices: number of equal slices of channels in the map that the input is cut from.
    """
    size = (max(1, min(size[0], _MOST_NUMBERS // math.prod(size[1:]))), *size[1:])

    def timed(kernel: Kernel) -> Callable[[], object]:
        conv = build(kernel, size)
        larger = torch.full((size[0], slices * size[1], *size[2:]), 0.5, dtype=dtype)
        example = larger.to(memory_format=torch.channels_last)[:, : size[1]]
        return functools.partial(conv, example.permute(0, 2, 3, 1) if conv.maps else example)

    cut = f" of {slices} slices" if slices > 1 else ""
    return _fastest(f"{name} {'x'.join(map(str, size))}{cut}", dtype, kernels, timed)


def fastest_softmax(queries: torch.Size, keys: torch.Size, *, num_heads: int, dtype: torch.dtype) -> Kernel:
    """Choose the fastest kernel of softmax attention, for queries and keys of shapes (B, N, C)."""
    images = max(1, min(queries[0], _MOST_NUMBERS // (queries.numel() // queries[0])))
    size, channels = (images, min(queries[1], _MOST_ROWS)), queries[2]
    q = torch.linspace(-1, 1, math.prod(size) * channels).view(*size, channels).to(dtype)
    kv = torch.linspace(-1, 1, images * keys[1] * 2 * channels).view(images, keys[1], 2 * channels).to(dtype)
    k, v = kv.chunk(2, dim=-1)

    def build(kernel: Kernel) -> Callable[[], object]:
        if kernel == "C++":
            return lambda: softmax_attention_native(q[:, None], k[:, None], v[:, None], num_heads)
        query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        return lambda: F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2).flatten(2)

    name = f"softmax attention of {num_heads} heads {'x'.join(map(str, q.shape))} {keys[1]} keys"
    return _fastest(name, dtype, ("C++", "torch"), build)


def _fastest(
    name: str, dtype: torch.dtype, kernels: Sequence[Kernel], build: Callable[[Kernel], Callable[[], object]]
) -> Kernel:
    """Time the kernels, or look up an earlier result."""
    results = _results()
    key = f"{name} {str(dtype).removeprefix('torch.')} {torch.get_num_threads()} threads: {' / '.join(kernels)}"
    if results.get(key) not in kernels:
        times = dict(zip(kernels, shortest_times([build(kernel) for kernel in kernels]), strict=True))
        results[key] = min(kernels, key=times.__getitem__)
        _save(results)
    return results[key]


@torch.inference_mode()
def shortest_times(forms: Sequence[Callable[[], object]], *, device: torch.device = _CPU) -> list[float]:
    """Time forms in turns; return the shortest time of each in seconds, because noise only adds."""
    rounds: list[list[float]] = []
    started = time.perf_counter()
    with torch.autocast(device.type, enabled=False):
        while len(rounds) <= _FEWEST_ROUNDS or (
            len(rounds) <= _MOST_ROUNDS and time.perf_counter() - started < _ROUNDS_S
        ):
            rounds.append([_seconds(form, device) for form in forms])
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _seconds(form: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    calls, started = 0, time.perf_counter()
    while not calls or time.perf_counter() - started < _TURN_S:
        form()
        _synchronize(device)
        calls += 1
    return (time.perf_counter() - started) / calls


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def _results() -> dict[str, Kernel]:
    """Read this machine's file: what was timed → the chosen kernel; {} if unreadable."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        content = json.loads(_file().read_text(encoding="utf-8"))
        return {key: kernel for key, kernel in content.items() if kernel in get_args(Kernel)}
    return {}


def _save(results: dict[str, Kernel]) -> None:
    """Replace the file in one step; if the disk is full or not writable, the next process times again."""
    written = _file().with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            written.write_text(json.dumps(results), encoding="utf-8")
            written.replace(_file())
        finally:
            written.unlink(missing_ok=True)


@functools.cache
def _file() -> Path:
    return cache_folder() / f"kernels-{_VERSION}-{kernels_digest()}-torch-{torch.__version__}.json"
