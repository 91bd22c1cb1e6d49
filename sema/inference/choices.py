"""Which of two kernels is faster on this machine.

None always is: on some CPUs oneDNN's packed products are twice as fast as torch's own, on others one call of theirs
costs more than a small product. So two are timed, once for each shape, dtype and number of threads, and the user's
cache keeps the outcome.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sema.inference.fused import FusedConv2d, FusedLinear
from sema.kernels.library import cache_folder, cpu_digest

#: More rows take as long per row, so they are not timed.
_MOST_ROWS = 4096
_ROUNDS = 5
#: In every round the other kernel must take less of the time than this: a wrong choice is kept for long, and the
#: residual, which only oneDNN's kernels and ours add in passing, is not timed.
_MARGIN = 0.95
#: A turn repeats a small product for at least this long.
_TURN_S = 2e-4


def is_packing_faster(weight: Tensor, bias: Tensor | None, *, act: str, rows: int) -> bool:
    """Whether oneDNN's packed product with ``weight`` (out, in) is about as fast as torch's at a number of rows."""
    outputs, inputs = weight.shape
    rows = min(rows, _MOST_ROWS)
    example = torch.full((rows, inputs), 0.5, dtype=weight.dtype)

    def form(*, packed: bool) -> Callable[[], object]:
        return functools.partial(FusedLinear(weight, bias, act=act, packed=packed, rows=rows), example)

    shape = f"product {rows}x{inputs}x{outputs} {act}"
    return not _is_clearly_faster(shape, weight.dtype, lambda: (form(packed=False), form(packed=True)))


def is_native_faster(build: Callable[..., FusedConv2d], sides: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether our depthwise convolution is about as fast as oneDNN's on one image with ``sides`` (H, W).

    Args:
        build: builds the convolution; takes ``native``.
    """
    native, other = build(native=True), build(native=False)
    example = torch.full((1, *sides, native.in_channels), 0.5, dtype=dtype)
    example = example if native.maps else example.permute(0, 3, 1, 2)
    name = f"depthwise {'x'.join(map(str, example.shape))} {native.kernel_size} {native.act}"
    return not _is_clearly_faster(
        name, dtype, lambda: (functools.partial(other, example), functools.partial(native, example))
    )


def _is_clearly_faster(
    name: str, dtype: torch.dtype, build: Callable[[], tuple[Callable[[], object], Callable[[], object]]]
) -> bool:
    """Time the first of two forms against the second, or look up what was found before."""
    known = _known()
    key = f"{name} {str(dtype).removeprefix('torch.')} {torch.get_num_threads()} threads"
    if key not in known:
        known[key] = max(ratios_of_times(*build())) < _MARGIN
        _keep(known)
    return known[key]


@torch.inference_mode()
def ratios_of_times(form: Callable[[], object], other: Callable[[], object]) -> list[float]:
    """Time two forms in turns; return the time of ``form`` over that of ``other`` in each round."""
    rounds = [(_seconds(form), _seconds(other)) for _ in range(1 + _ROUNDS)]
    return [a / b for a, b in rounds[1:]]


def _seconds(form: Callable[[], object]) -> float:
    calls, started = 0, time.perf_counter()
    while not calls or time.perf_counter() - started < _TURN_S:
        form()
        calls += 1
    return (time.perf_counter() - started) / calls


@functools.cache
def _known() -> dict[str, bool]:
    """Return what was timed → whether the first was clearly faster, as this machine's file says, if it is readable."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {key: faster for key, faster in found.items() if isinstance(faster, bool)}
    return {}


def _keep(known: dict[str, bool]) -> None:
    """Write what is known in one step; without room or rights for it, the next process times anew."""
    written = _file().with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        try:
            written.write_text(json.dumps(known), encoding="utf-8")
            written.replace(_file())
        finally:
            written.unlink(missing_ok=True)


@functools.cache
def _file() -> Path:
    return cache_folder() / f"kernels-{cpu_digest()}-torch-{torch.__version__}.json"
