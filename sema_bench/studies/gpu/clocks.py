"""Checks 2, 3 and 9: the clocks agree; the cost of a kernel launch, and that of watching the card."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import profile

from sema_bench.machine.disturbance import Telemetry
from sema_bench.studies.gpu.check import Answers, Card, Finding, between, error_of, holds, not_reported, stated
from sema_bench.worker.protocol import CompareClocks, Prepare, Sample, WorkloadSpec
from sema_bench.worker.stopwatch import Stopwatch, event_seconds
from sema_bench.worker.workload import Workload, on_device, skipped_graphs

#: Calls of the driver and of the runtime that start a kernel, or a whole graph.
_LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")


def measure_clocks(card: Card) -> dict[str, Any]:
    """Time the same work by events and by the host, in a row and one by one, and a loop of known length."""
    with card.worker() as worker:
        limit = card.seconds(5.0)
        cell = card.cell("sema_tiny", 224, batch=card.count(32))
        worker.ask(Prepare(WorkloadSpec(cell, 0), 60.0, limit), timeout_s=120.0)
        readings = worker.ask(CompareClocks(3), timeout_s=120.0)
    device = torch.device(card.device)
    with torch.inference_mode(), on_device(device):
        large, small = (torch.randn(side, side, device=device) for side in (card.size(4096), 64))
        work = functools.partial(torch.mm, large, large)
        event_seconds(work, 3)
        passes = card.count(100)
        row_s = event_seconds(work, passes)[0]
        singles_s = sum(event_seconds(work)[0] for _ in range(passes))
        loop, many = functools.partial(torch.mm, small, small), card.count(4000)
        event_seconds(loop, 100)
        loop_s, double_s = (statistics.median(event_seconds(loop, n)[0] for _ in range(5)) for n in (many, 2 * many))
    clocks = {"events_s": sum(readings.first_s), "host_s": sum(readings.second_s)}
    return {**clocks, "row_s": row_s, "singles_s": singles_s, "loop_s": loop_s, "double_loop_s": double_s}


def judge_clocks(answers: Answers) -> Iterator[Finding]:
    """Compare the sums of the two clocks."""
    yield between("events / host", answers["events_s"] / answers["host_s"], 0.995, 1.005)
    # a single event costs up to 10 µs, and a product of 4096³ takes some milliseconds
    yield between("single products / the same in a row", answers["singles_s"] / answers["row_s"], 0.995, 1.1)
    yield between("loop of twice the length", answers["double_loop_s"] / answers["loop_s"], 1.9, 2.1)


def measure_launches(card: Card) -> dict[str, Any]:
    """Time empty kernels, and one model in the modes that launch its kernels one by one and all at once."""
    device = torch.device(card.device)
    one, count = torch.zeros(1, device=device), card.count(1000)
    with on_device(device):
        launch_s = min(event_seconds(one.zero_, count)[2] for _ in range(5)) / count
    modes: dict[str, Any] = {}
    exact: torch.Tensor | None = None
    for mode in ("eager", "cuda-graphs", "compile-reduce-overhead"):
        workload = Workload(card.cell("sema_tiny", 224, mode=mode))
        watch = Stopwatch(workload)
        watch.first_forward()
        watch.warm_up(card.seconds(2.0))
        samples = watch.sample(card.count(50))
        logits = workload.forward().clone()
        exact = logits if exact is None else exact
        modes[mode] = {
            "latency_s": statistics.median(samples.wall_s),
            "launch_s": statistics.median(samples.launch_s),
            "launches": _launches(workload),
            "logits_error": error_of(logits, exact),
        }
    return {"launch_s": launch_s, "modes": modes, "cudagraph_skips": skipped_graphs()}


def _launches(workload: Workload) -> int:
    """Count the kernels that the host starts in one step."""
    with profile() as profiler:
        workload.forward()
        workload.synchronise()
    return sum(event.count for event in profiler.key_averages() if event.key in _LAUNCHES)


def judge_launches(answers: Answers) -> Iterator[Finding]:
    """Judge the cost of a launch, and that graphs save it."""
    modes = answers["modes"]
    yield between("one launch", 1e6 * answers["launch_s"], 2, 10, " µs")
    for name, mode in modes.items():
        share = mode["launch_s"] / mode["latency_s"]
        figure = f"{1e3 * mode['latency_s']:.3g} ms, launch share {share:.0%}, {mode['launches']} launches"
        yield stated(f"sema_tiny 224 b1, {name}", figure)
        # a graph runs the same kernels; the compiler's own kernels add in another order
        limit = 1e-4 if name.startswith("compile") else 1e-5
        yield between(f"logits of {name} against eager", mode["logits_error"], None, limit)
    yield between("eager / cuda-graphs", modes["eager"]["latency_s"] / modes["cuda-graphs"]["latency_s"], 2, None, " ×")
    yield holds("CUDA graphs that inductor skipped", not answers["cudagraph_skips"], answers["cudagraph_skips"], "0")


def measure_telemetry(card: Card) -> dict[str, Any]:
    """Time one cell with and without the thread that reads NVML, in turns."""
    telemetry = Telemetry(card.device)
    watched: list[float] = []
    alone: list[float] = []
    with card.worker() as worker:
        cell = card.cell("sema_tiny", 224)
        worker.ask(Prepare(WorkloadSpec(cell, 0), 60.0, card.seconds(2.0)), timeout_s=120.0)
        request = Sample(card.count(60), settle=1)
        for _ in range(card.count(30)):
            alone += worker.ask(request, timeout_s=60.0).wall_s
            with telemetry.window(worker.pid):
                watched += worker.ask(request, timeout_s=60.0).wall_s
    medians = {"alone_s": statistics.median(alone), "watched_s": statistics.median(watched)}
    return {**medians, "absent": dict(telemetry.absent)}


def judge_telemetry(answers: Answers) -> Iterator[Finding]:
    """Compare the medians."""
    yield from not_reported(answers)
    yield between("watched / alone", answers["watched_s"] / answers["alone_s"], 0.99, 1.01)
