"""Choose the faster of two kernels on this machine.

Neither is always faster: on some CPUs oneDNN's packed products are twice as fast as torch's own, on others one call
costs more than a small product. Each pair is timed once for each shape, dtype and number of threads; the user's cache
keeps the result.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sema.inference.fused import FusedConv2d, FusedLinear
from sema.kernels.library import cache_folder, cpu_digest, load_library

#: With more rows the time per row stays the same, so they are not timed.
_MOST_ROWS = 4096
#: Time at most this many input numbers; larger batches are cut.
_MOST_NUMBERS = 1 << 24
_ROUNDS = 5
_CPU = torch.device("cpu")
#: The other kernel wins only if it takes less than this share of the time in every round. A wrong choice stays for
#: long, and the timing leaves out the residual, which only oneDNN's kernels and ours fuse.
_MARGIN = 0.95
#: A turn repeats a small product for at least this long.
_TURN_S = 2e-4


def keep_packed(weight: Tensor, bias: Tensor | None, *, act: str, rows: int) -> bool:
    """Check that torch's product with ``weight`` (out, in) is not clearly faster than oneDNN's with packed weights."""
    outputs, inputs = weight.shape
    rows = min(rows, _MOST_ROWS)

    def forms() -> Iterator[Callable[[], object]]:
        example = torch.full((rows, inputs), 0.5, dtype=weight.dtype)
        for packed in (False, True):
            yield functools.partial(FusedLinear(weight, bias, act=act, packed=packed, rows=rows), example)

    return not _is_clearly_faster(f"product {rows}x{inputs}x{outputs} {act}", weight.dtype, forms)


def keep_native(
    native: FusedConv2d, *, other: Callable[[Sequence[int]], FusedConv2d], size: Sequence[int], dtype: torch.dtype
) -> bool:
    """Check that another form of a depthwise convolution is not clearly faster than ours in C++.

    Args:
        native: the C++ form.
        other: builds the other form for a size.
        size: (B, C, H, W) of the input.
        dtype: of the input.
    """
    size = (max(1, min(size[0], _MOST_NUMBERS // math.prod(size[1:]))), *size[1:])

    def forms() -> Iterator[Callable[[], object]]:
        example = torch.full(size, 0.5, dtype=dtype).to(memory_format=torch.channels_last)
        for form in (other(size), native):
            yield functools.partial(form, example.permute(0, 2, 3, 1) if native.maps else example)

    library = Path(load_library("depthwise_conv")._name).stem
    order = "maps" if native.maps else "images"
    sides, kernel = ("x".join(map(str, each)) for each in (size, native.kernel_size))
    return not _is_clearly_faster(f"{library} {order} of {sides} {kernel} {native.act}", dtype, forms)


def _is_clearly_faster(
    name: str, dtype: torch.dtype, build_forms: Callable[[], Iterable[Callable[[], object]]]
) -> bool:
    """Time the first of two forms against the second, or look up an earlier result."""
    results = _results()
    key = f"{name} {str(dtype).removeprefix('torch.')} {torch.get_num_threads()} threads"
    if key not in results:
        results[key] = max(ratios_of_times(*build_forms())) < _MARGIN
        _save(results)
    return results[key]


@torch.inference_mode()
def ratios_of_times(
    form: Callable[[], object], other: Callable[[], object], *, device: torch.device = _CPU
) -> list[float]:
    """Time two forms in turns; return the time of ``form`` over that of ``other`` in each round."""
    rounds = [(_seconds(form, device), _seconds(other, device)) for _ in range(1 + _ROUNDS)]
    return [a / b for a, b in rounds[1:]]


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
def _results() -> dict[str, bool]:
    """Read this machine's file: name of a pair → True if its first form is clearly faster; {} if unreadable."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        content = json.loads(_file().read_text(encoding="utf-8"))
        return {key: faster for key, faster in content.items() if isinstance(faster, bool)}
    return {}


def _save(results: dict[str, bool]) -> None:
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
    return cache_folder() / f"kernels-{cpu_digest()}-torch-{torch.__version__}.json"
