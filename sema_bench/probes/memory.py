"""Peak memory of one forward pass, or of one training step.

CPU: the peak of live tensor bytes, traced at torch's allocator, which is exact and repeatable; and the
peak resident set of the worker, which includes what libraries take for themselves. CUDA: the caching
allocator's peaks and NVML's figure for the process.

activation_bytes = peak_memory_bytes − weights_bytes − input_bytes − optimizer_bytes; gradients are a part of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sema_bench.allocator import reset_peak_rss, rss_bytes, trim_heap
from sema_bench.probes.base import Findings, Probe
from sema_bench.schema import Measurement

if TYPE_CHECKING:
    from sema_bench.subject import Subject


#: Modes in which, on CUDA, a compiler records graphs: what they need lies in a pool that only ``peak_reserved_bytes``
#: tells, and the peak of what was allocated is the compiler's.
_REPLAYED = ("compile-reduce-overhead", "compile-max-autotune")


class MemoryProbe(Probe):
    """Peak memory of one forward pass: live tensors and resident set (CPU), allocator and NVML (CUDA)."""

    metrics = (
        "peak_memory_bytes",
        "weights_bytes",
        "input_bytes",
        "optimizer_bytes",
        "activation_bytes",
        "peak_rss_bytes",
        "rss_growth_bytes",
        "peak_reserved_bytes",
        "device_process_bytes",
        "compile_s",
    )

    def measure(self, subject: Subject) -> Findings:
        values: dict[str, float] = {"weights_bytes": subject.weights_bytes(), "input_bytes": subject.input.nbytes}
        if subject.cell.mode == "cuda-graphs":
            values |= _measure_capture(subject)
        else:
            # What a compiler allocates is not the model's; what an optimiser makes in its first step stays.
            if subject.cell.compiled or subject.trains:
                values |= _first_step(subject)
            if subject.trains:
                values["optimizer_bytes"] = subject.optimizer_bytes()
            values |= _measure_cuda(subject) if subject.device.type == "cuda" else _measure_cpu(subject, values)
        if subject.device.type == "cuda" and subject.cell.mode in _REPLAYED:
            del values["peak_memory_bytes"]
        else:
            values["activation_bytes"] = values["peak_memory_bytes"] - _standing(values)
        return Findings(tuple(Measurement(metric=name, value=values[name]) for name in self.metrics if name in values))


def _standing(values: Mapping[str, float]) -> float:
    """Return the bytes that are there before a step begins."""
    return sum(values.get(name, 0) for name in ("weights_bytes", "input_bytes", "optimizer_bytes"))


def _first_step(subject: Subject) -> dict[str, float]:
    """Take the first step; return the time of compiling, if it compiled and no cache made it short."""
    _, took, fresh = subject.first_step()
    if not (subject.cell.compiled and fresh):
        return {}
    return {"compile_s": max(0.0, took - subject.first_step()[1])}


def _measure_cpu(subject: Subject, values: Mapping[str, float]) -> dict[str, float]:
    live = _peak_live_bytes(subject)  # first: libraries take memory of their own on a first pass
    return {"peak_memory_bytes": _standing(values) + live, **_measure_rss(subject)}


def _measure_rss(subject: Subject) -> dict[str, int]:
    from sema_bench.subject import free_memory

    free_memory()
    trim_heap()
    before = rss_bytes()
    allowed = reset_peak_rss()
    subject.forward()
    peak = rss_bytes(peak=True)
    if before is None or peak is None or not allowed:
        return {}
    return {"peak_rss_bytes": peak, "rss_growth_bytes": max(0, peak - before)}


def _peak_live_bytes(subject: Subject) -> int:
    """Return the peak of bytes that torch's CPU allocator had handed out during one forward pass."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        subject.forward()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _measure_cuda(subject: Subject) -> dict[str, int]:
    import torch

    from sema_bench.subject import free_memory

    device = subject.device
    subject.forward()  # cuBLAS and cuDNN take their workspaces on first use
    subject.synchronise()
    free_memory()
    torch.cuda.reset_peak_memory_stats(device)
    subject.forward()
    subject.synchronise()
    return _cuda_peaks(subject)


def _measure_capture(subject: Subject) -> dict[str, int]:
    """Measure while a forward pass is run and recorded as a graph: replaying it allocates nothing."""
    import torch

    from sema_bench.subject import free_memory

    subject.network, subject.input  # noqa: B018 - they are there before
    free_memory()
    torch.cuda.reset_peak_memory_stats(subject.device)
    subject.first_step()
    return _cuda_peaks(subject)


def _cuda_peaks(subject: Subject) -> dict[str, int]:
    import torch

    values = {
        "peak_memory_bytes": torch.cuda.max_memory_allocated(subject.device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(subject.device),
    }
    used = _nvml_process_bytes(subject.device.index or 0)
    return values | ({"device_process_bytes": used} if used is not None else {})


def _nvml_process_bytes(index: int) -> int | None:
    """Return the device memory of this process as NVML sees it; None where NVML does not list it (containers)."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
    except pynvml.NVMLError:
        return None
    return None
