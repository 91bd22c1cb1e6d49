"""Which kernel computes a linear map faster on this machine: oneDNN's with packed weights, or torch's own product.

Neither always does: on some CPUs packed kernels are twice as fast, on others one call of theirs costs more than a small
product. So both are timed, once for each shape, dtype and number of threads, and the user's cache keeps the outcome.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from sema.inference.fused import FusedLinear
from sema.kernels.library import cache_folder, cpu_digest

#: More rows take as long per row, so they are not timed.
_MOST_ROWS = 4096
_ROUNDS = 5
#: torch's product must take less of the time than this in every round: a wrong choice is kept for long, and the
#: residual, which only packed kernels add in passing, is not timed.
_MARGIN = 0.95
#: A turn repeats a small product for at least this long.
_TURN_S = 2e-4


def is_packing_faster(weight: Tensor, bias: Tensor | None, *, act: str, rows: int) -> bool:
    """Compare both kernels for ``weight`` (out, in) at a number of rows, or look up what was found before."""
    outputs, inputs = weight.shape
    rows = min(rows, _MOST_ROWS)
    dtype = str(weight.dtype).removeprefix("torch.")
    shape = f"{rows}x{inputs}x{outputs} {act} {dtype} {torch.get_num_threads()} threads"
    known = _known()
    if shape not in known:
        packed, plain = (FusedLinear(weight, bias, act=act, packed=packed, rows=rows) for packed in (True, False))
        example = torch.full((rows, inputs), 0.5, dtype=weight.dtype)
        ratios = ratios_of_times(functools.partial(plain, example), functools.partial(packed, example))
        known[shape] = max(ratios) >= _MARGIN
        _keep(known)
    return known[shape]


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
    """Return shape → whether packing is faster, as this machine's file says; an unreadable one says nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {shape: faster for shape, faster in found.items() if isinstance(faster, bool)}
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
    return cache_folder() / f"products-{cpu_digest()}-torch-{torch.__version__}.json"
