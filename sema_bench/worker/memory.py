"""Measure the peak memory of one step: forward pass or training step.

CPU: the peak of live tensor bytes, traced at torch's allocator, which is exact and repeatable; and the peak resident
set of the worker, which includes what libraries take for themselves. CUDA: the caching allocator's peaks and NVML's
figure for the process.

activation_bytes = peak_memory_bytes − weights_bytes − input_bytes − optimizer_bytes; gradients are a part of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch.profiler import ProfilerActivity, profile

from sema_bench.worker.allocator import reset_peak_rss, rss_bytes, trim_heap
from sema_bench.worker.workload import Workload, free_memory

#: Modes in which, on CUDA, a compiler records graphs: their memory lies in a pool that only ``peak_reserved_bytes``
#: counts, and the peak of what was allocated is the compiler's.
_REPLAYED = ("compile-reduce-overhead", "compile-max-autotune")


def measure_memory(workload: Workload) -> dict[str, float]:
    """Return metric → bytes, and ``compile_s`` if the first step compiled."""
    values: dict[str, float] = {"weights_bytes": workload.weights_bytes(), "input_bytes": workload.input.nbytes}
    if workload.cell.mode == "cuda-graphs":
        values |= _measure_capture(workload)
    else:
        # What a compiler allocates is not the model's; what an optimiser makes in its first step stays.
        if workload.cell.compiled or workload.trains:
            values |= _first_step(workload)
        if workload.trains:
            values["optimizer_bytes"] = workload.optimizer_bytes()
        values |= _measure_cuda(workload) if workload.device.type == "cuda" else _measure_cpu(workload, values)
    if workload.device.type == "cuda" and workload.cell.mode in _REPLAYED:
        del values["peak_memory_bytes"]
    else:
        values["activation_bytes"] = values["peak_memory_bytes"] - _standing(values)
    return values


def _standing(values: Mapping[str, float]) -> float:
    """Sum the bytes that are allocated before a step begins."""
    return sum(values.get(name, 0) for name in ("weights_bytes", "input_bytes", "optimizer_bytes"))


def _first_step(workload: Workload) -> dict[str, float]:
    """Take the first step; return the time of compiling, if it compiled and no cache made it short."""
    _, took, fresh = workload.first_step()
    if not (workload.cell.compiled and fresh):
        return {}
    return {"compile_s": max(0.0, took - workload.first_step()[1])}


def _measure_cpu(workload: Workload, values: Mapping[str, float]) -> dict[str, float]:
    live = _peak_live_bytes(workload)  # first: libraries take memory of their own on a first pass
    return {"peak_memory_bytes": _standing(values) + live, **_measure_rss(workload)}


def _measure_rss(workload: Workload) -> dict[str, int]:
    free_memory()
    trim_heap()
    before = rss_bytes()
    allowed = reset_peak_rss()
    workload.forward()
    peak = rss_bytes(peak=True)
    if before is None or peak is None or not allowed:
        return {}
    return {"peak_rss_bytes": peak, "rss_growth_bytes": max(0, peak - before)}


def _peak_live_bytes(workload: Workload) -> int:
    """Return the peak of bytes that torch's CPU allocator had handed out during one step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        workload.forward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _measure_cuda(workload: Workload) -> dict[str, int]:
    workload.forward()  # cuBLAS and cuDNN take their workspaces on first use
    workload.synchronise()
    free_memory()
    torch.cuda.reset_peak_memory_stats(workload.device)
    workload.forward()
    workload.synchronise()
    return _cuda_peaks(workload.device)


def _measure_capture(workload: Workload) -> dict[str, int]:
    """Measure while a forward pass is run and recorded as a graph: replaying it allocates nothing."""
    workload.network, workload.input  # noqa: B018 - they are there before
    free_memory()
    torch.cuda.reset_peak_memory_stats(workload.device)
    workload.first_step()
    return _cuda_peaks(workload.device)


def _cuda_peaks(device: torch.device) -> dict[str, int]:
    values = {
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    used = _nvml_process_bytes(device.index or 0)
    return values | ({"device_process_bytes": used} if used is not None else {})


def _nvml_process_bytes(index: int) -> int | None:
    """Return the device memory of this process as NVML counts it; None if NVML does not list it (containers)."""
    import pynvml  # only machines with a GPU need it

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    except pynvml.NVMLError:
        return None
    return None
