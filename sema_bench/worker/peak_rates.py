"""Measure the peak rates of a device in a worker: matrix products in one dtype, and copies of several sizes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from sema_bench.analysis.roofline import Peaks
from sema_bench.errors import ProbeError, is_out_of_memory
from sema_bench.worker.stopwatch import event_seconds, wall_seconds
from sema_bench.worker.workload import on_device

#: Sides of the square matrices.
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
#: Bytes of the source of a copy; as many are written.
_COPIES = {"cpu": (2**18, 2**20, 2**22, 2**24, 2**27), "cuda": (2**22, 2**24, 2**26, 2**30)}
#: Each shape is repeated for about this long, and its best time counts: a peak is not an average.
_SECONDS = 0.4
_FEWEST = 5
#: Most copies or products between two CUDA events: a single launch takes as long as a small copy.
_IN_A_ROW = 20


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure the best rates of this process's torch on ``device``.

    A product is computed by the BLAS and as a 1×1 convolution, because on some CPUs the convolution library is faster;
    in half precision on a CPU also in float32, as inference forms do where that is faster. A shape that does not fit
    into the free memory is left out.
    """
    with torch.inference_mode(), on_device(device):
        ways = _ways_to_multiply(device, dtype)
        products = _rates(lambda side: _product_rate(ways, side, device), _SIDES[device.type])
        copies = _rates(lambda size: _copy_rate(size, device), _COPIES[device.type])
    if not products or not copies:
        raise ProbeError("no shape fits into the free memory of the device; free some of it")
    return Peaks(max(products.values()), tuple((2 * size, rate) for size, rate in copies.items()))


def _rates(measure: Callable[[int], float], sizes: Iterable[int]) -> dict[int, float]:
    """Map each of ``sizes`` that does not run out of memory to its rate."""
    rates: dict[int, float] = {}
    for size in sizes:
        try:
            rates[size] = measure(size)
        except Exception as problem:
            if not is_out_of_memory(problem):
                raise
    return rates


def _ways_to_multiply(device: torch.device, dtype: torch.dtype) -> list[Callable[[int], Callable[[], object]]]:
    """Return functions that make a product of two square matrices, given their side."""

    def by_blas(side: int, dtype: torch.dtype = dtype) -> Callable[[], object]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        return functools.partial(torch.mm, a, b, out=torch.empty_like(a))

    def by_convolution(side: int, dtype: torch.dtype = dtype) -> Callable[[], object]:
        image = torch.randn(1, side, side // 32, 32, device=device).to(dtype)
        kernel = torch.randn(side, side, 1, 1, device=device).to(dtype)
        return functools.partial(F.conv2d, *(x.contiguous(memory_format=torch.channels_last) for x in (image, kernel)))

    ways: list[Callable[[int], Callable[[], object]]] = [by_blas, by_convolution]
    if device.type == "cpu" and dtype.itemsize == 2:
        ways += [
            functools.partial(by_blas, dtype=torch.float32),
            functools.partial(by_convolution, dtype=torch.float32),
        ]
    return ways


def _product_rate(ways: list[Callable[[int], Callable[[], object]]], side: int, device: torch.device) -> float:
    """Return the best rate, and drop the ways that reach less than half of it: they may be a hundred times slower."""
    rates = [2 * side**3 / best_time(way(side), device) for way in ways]
    ways[:] = [way for way, rate in zip(ways, rates, strict=True) if rate > max(rates) / 2]
    return max(rates)


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_time(lambda: target.copy_(source), device)


def best_time(work: Callable[[], object], device: torch.device) -> float:
    """Measure the shortest time of ``work`` in seconds, after two calls to warm up.

    On CUDA the second call sets how many calls are timed in a row: a large product takes a second on a slow card.
    """
    work()
    cuda = device.type == "cuda"
    one = (event_seconds if cuda else wall_seconds)(work)[0]
    in_a_row = max(1, min(_IN_A_ROW, int(_SECONDS / _FEWEST / max(one, 1e-9))))
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _FEWEST or time.perf_counter() - started < _SECONDS:
        times.append(event_seconds(work, in_a_row)[0] / in_a_row if cuda else wall_seconds(work)[0])
    return min(times)
