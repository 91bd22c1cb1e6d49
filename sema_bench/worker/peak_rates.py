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
        products = _rates(lambda side: max(_product_rates(side, device, dtype)), _SIDES[device.type])
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


def _product_rates(side: int, device: torch.device, dtype: torch.dtype) -> list[float]:
    a, b = (torch.randn(side, side, device=device) for _ in range(2))
    image = a.t().reshape(1, side, side // 32, 32).to(dtype).contiguous(memory_format=torch.channels_last)
    kernel = b.reshape(side, side, 1, 1).to(dtype).contiguous(memory_format=torch.channels_last)
    dtypes = {dtype} | ({torch.float32} if device.type == "cpu" and dtype.itemsize == 2 else set())
    given = [(a.to(each), b.to(each), torch.empty_like(a, dtype=each)) for each in dtypes]
    ways = [functools.partial(torch.mm, a, b, out=out) for a, b, out in given]
    return [2 * side**3 / best_time(way, device) for way in (*ways, functools.partial(F.conv2d, image, kernel))]


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
