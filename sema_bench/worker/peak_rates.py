"""Measure the peak rates of a device in a worker: matrix products in one dtype, and copies of several sizes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sema_bench.analysis.roofline import Peaks
from sema_bench.worker.stopwatch import event_seconds, wall_seconds
from sema_bench.worker.workload import on_device

#: Sides of the square matrices.
_SIDES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
#: Bytes of the source of a copy; as many are written.
_COPIES = {"cpu": (2**18, 2**20, 2**22, 2**24, 2**27), "cuda": (2**22, 2**24, 2**26, 2**30)}
#: Each shape is repeated for about this long, and its best time counts: a peak is not an average.
_SECONDS = 0.4
_FEWEST = 5
#: Copies or products between two CUDA events: a single launch takes as long as a small copy.
_IN_A_ROW = 20


def measure_peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
    """Measure the best rates of this process's torch on ``device``.

    A product is computed by the BLAS and as a 1×1 convolution: on some CPUs the convolution library is faster, and a
    model may use either.
    """
    with torch.inference_mode(), on_device(device):
        rate = max(max(_product_rates(side, device, dtype)) for side in _SIDES[device.type])
        copies = tuple((2 * size, _copy_rate(size, device)) for size in _COPIES[device.type])
    return Peaks(rate, copies)


def _product_rates(side: int, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    image = a.t().reshape(1, side, side // 32, 32).contiguous(memory_format=torch.channels_last)
    kernel = b.reshape(side, side, 1, 1).contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(a)
    by_blas = _best_time(lambda: torch.mm(a, b, out=out), device)
    by_convolution = _best_time(lambda: F.conv2d(image, kernel), device)
    return 2 * side**3 / by_blas, 2 * side**3 / by_convolution


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_time(lambda: target.copy_(source), device)


def _best_time(work: Callable[[], object], device: torch.device) -> float:
    """Measure the shortest time of ``work`` in seconds, after two calls to warm up."""
    for _ in range(2):
        work()
    times: list[float] = []
    cuda, started = device.type == "cuda", time.perf_counter()
    while len(times) < _FEWEST or time.perf_counter() - started < _SECONDS:
        times.append(event_seconds(work, _IN_A_ROW)[0] / _IN_A_ROW if cuda else wall_seconds(work)[0])
    return min(times)
