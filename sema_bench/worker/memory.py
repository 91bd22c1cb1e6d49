"""Measure the peak memory of one step: forward pass or training step.

CPU: the peak of live tensor bytes, traced at torch's allocator, which is exact and repeatable; and the peak resident
set of the worker, which includes buffers of libraries. CUDA: the caching allocator's peaks, and NVML's figure for the
process.

activation_bytes = peak_memory_bytes − weights_bytes − input_bytes − optimizer_bytes − workspace_bytes; gradients are
part of it. The workspaces of cuBLAS lie in the caching allocator, 32 MiB on some cards, and do not grow with an image.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence

import pynvml
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves

from sema_bench.worker.allocator import reset_peak_rss, rss_bytes
from sema_bench.worker.workload import Workload, free_memory

_PART_BEGINS = "part begins"


def measure_memory(workload: Workload) -> dict[str, float]:
    """Map metrics to bytes, and ``compile_s`` to seconds if the first step compiled."""
    values: dict[str, float] = {"weights_bytes": workload.weights_bytes(), "input_bytes": workload.input.nbytes}
    if workload.cell.mode == "cuda-graphs":
        values |= _measure_capture(workload, _standing(values))
    else:
        # A compiler allocates memory that is not the model's; the optimizer's state of the first step stays.
        if workload.cell.compiled or workload.trains:
            values |= _first_step(workload)
        values["weights_bytes"] += workload.frozen_bytes()
        if workload.trains:
            values["optimizer_bytes"] = workload.training_step.optimizer_bytes
        if workload.device.type == "cuda":
            values |= _measure_cuda(workload, _standing(values))
        else:
            peaks = _peaks_of_live_bytes(workload)  # before _measure_rss: libraries allocate buffers on a first pass
            values |= _whole_and_parts(workload, [_standing(values) + live for live in peaks])
            values |= _measure_rss(workload)
    if workload.replays_graphs:  # peak_reserved_bytes counts the pool of the graphs; the rest is the compiler's
        del values["peak_memory_bytes"], values["workspace_bytes"]
    else:
        values["activation_bytes"] = values["peak_memory_bytes"] - _standing(values)
    return values


def _standing(values: Mapping[str, float]) -> float:
    """Sum the bytes that are allocated before a step begins."""
    names = ("weights_bytes", "input_bytes", "optimizer_bytes", "workspace_bytes")
    return sum(values.get(name, 0) for name in names)


def _first_step(workload: Workload) -> dict[str, float]:
    """Take the first step; return the time to compile, if it compiled and no cache shortened it."""
    _, took, fresh = workload.first_step()
    if not (workload.cell.compiled and fresh):
        return {}
    return {"compile_s": max(0.0, took - workload.first_step()[1])}


def _measure_rss(workload: Workload) -> dict[str, int]:
    free_memory()
    before = rss_bytes()
    allowed = reset_peak_rss()
    workload.forward()
    peak = rss_bytes(peak=True)
    if before is None or peak is None or not allowed:
        return {}
    return {"peak_rss_bytes": peak, "rss_growth_bytes": max(0, peak - before)}


def _whole_and_parts(workload: Workload, peaks: Sequence[float]) -> dict[str, float]:
    """Name the peaks of a step: before its first part, if it has parts, and while each of them runs."""
    of_parts = {f"peak_{part}_bytes": peak for part, peak in zip(workload.parts, peaks[1:], strict=False)}
    return {"peak_memory_bytes": max(peaks), **of_parts}


def _peaks_of_live_bytes(workload: Workload) -> list[int]:
    """Trace the bytes that torch's CPU allocator hands out in one step; return the peaks, see ``_whole_and_parts``."""

    def part_begins() -> None:
        with record_function(_PART_BEGINS):
            pass

    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler,
        workload.noting_parts(part_begins),
    ):
        workload.forward()
    live, peaks = 0, [0]
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peaks[-1] = max(peaks[-1], live)
        elif event.name() == _PART_BEGINS:
            peaks.append(live)
    return peaks


def _measure_cuda(workload: Workload, known: float) -> dict[str, float]:
    """Measure a pass after the first; memory allocated before it, beyond the ``known`` bytes, is workspace."""
    workload.forward()  # cuBLAS and cuDNN allocate their workspaces at first use
    workload.synchronise()
    free_memory()
    workspace = torch.cuda.memory_allocated(workload.device) - known
    peaks: list[int] = []

    def part_begins() -> None:
        peaks.append(torch.cuda.max_memory_allocated(workload.device))
        torch.cuda.reset_peak_memory_stats(workload.device)

    torch.cuda.reset_peak_memory_stats(workload.device)
    with workload.noting_parts(part_begins):
        workload.forward()
    workload.synchronise()
    values = _cuda_peaks(workload.device)
    peaks.append(values["peak_memory_bytes"])
    return {"workspace_bytes": workspace, **values, **_whole_and_parts(workload, peaks)}


def _measure_capture(workload: Workload, known: float) -> dict[str, float]:
    """Measure while a forward pass runs and is recorded as a graph: replaying it allocates nothing.

    Memory that stays allocated afterwards, beyond the output and the ``known`` bytes, is workspace.
    """
    workload.network, workload.input  # noqa: B018 - allocate them before
    free_memory()
    torch.cuda.reset_peak_memory_stats(workload.device)
    output = workload.first_step()[0]
    outputs = sum(each.nbytes for each in tree_leaves(output))
    workspace = torch.cuda.memory_allocated(workload.device) - outputs - known
    return {"workspace_bytes": workspace, **_cuda_peaks(workload.device)}


def _cuda_peaks(device: torch.device) -> dict[str, int]:
    values = {
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device.index or 0).uuid
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):  # in a container it may list none
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                values["device_process_bytes"] = int(process.usedGpuMemory)
    return values
