"""Latency and throughput: when to stop sampling, and what the samples say.

A cell is sampled until the 95 % bootstrap interval of its median is within ``precision`` (relative
half-width), at least 10 samples and 0.5 s, at most ``time_limit_s``. Six samples, the fewest that have an
interval, are taken beyond that limit where they fit into six times as much; three in any case. The record
says which bound ended it. ``Stopwatch`` runs in the worker; the rest needs no torch.
"""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sema_bench.analysis.ratios import interval_of_ratio
from sema_bench.errors import ProbeError
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import FEWEST_FOR_INTERVAL, median_interval
from sema_bench.worker.probes.base import Probe

if TYPE_CHECKING:
    from sema_bench.worker.workload import Workload

MIN_SAMPLES = 10
MIN_SAMPLED_S = 0.5
FEWEST_SAMPLES = 3
#: How many times its limit a cell may take to reach the fewest samples that have an interval.
STRETCH_FOR_INTERVAL = 6.0
#: One visit of the interleaving takes about this long, so that drift reaches every model within a second or two.
VISIT_S = 0.25
#: Passes between two events last that long when CUDA's clock is held against the host's.
CLOCKS_S = 0.5
#: Warm-up is over when the last three forward passes lie within this factor of one another …
WARM_SPREAD = 1.1
#: … or when it has taken this share of the sampling limit.
WARMUP_SHARE = 0.2


class ThroughputProbe(Probe):
    """Latency and throughput, sampled interleaved with the other models at the same resolution."""

    kind = "timed"
    metrics = (
        "latency_s",
        "throughput_images_per_s",
        "cpu_time_s",
        "page_faults_per_forward",
        "involuntary_switches_per_forward",
        "first_forward_s",
        "yardstick_s",
        "relative_latency",
    )


@dataclass
class Samples:
    """Raw samples of one cell, one entry per forward pass.

    Attributes:
        wall_s: wall time (CPU) or event time (CUDA).
        cpu_s: CPU time of the worker, all threads.
        page_faults: minor page faults of the worker.
        switches: involuntary context switches of the worker.
    """

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    page_faults: list[float] = field(default_factory=list)
    switches: list[float] = field(default_factory=list)

    def extend(self, other: Samples) -> None:
        """Append the samples of one more visit."""
        self.wall_s += other.wall_s
        self.cpu_s += other.cpu_s
        self.page_faults += other.page_faults
        self.switches += other.switches


class Stopwatch:
    """Times forward passes of one workload, in the worker."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.output_bytes = 0

    def first_forward(self) -> tuple[float, bool]:
        """Return the wall time of the first forward pass, in seconds, and whether no compiler's cache made it short.

        Raises:
            ProbeError: the output is not finite, or not one row for each image.
        """
        output, took, fresh = self.workload.first_step()
        self.output_bytes = output.nbytes
        if output.shape[0] != self.workload.cell.batch or not bool(output.isfinite().all()):
            raise ProbeError("the model's output is not finite, or not one row for each image; its time means nothing")
        return took, fresh

    def warm_up(self, limit_s: float) -> tuple[list[float], bool]:
        """Run once, then until three forward passes in a row agree or ``limit_s`` is over.

        The pass after the first one still faults in memory (the heap has settled after it).

        Returns:
            The times, and whether the last three agree.
        """
        times: list[float] = []
        while not times or sum(times) < limit_s:
            times += self.sample(1).wall_s
            last = times[-3:]
            if len(last) == 3 and max(last) <= WARM_SPREAD * min(last):
                return times, True
        return times, False

    def sample(self, count: int) -> Samples:
        """Time ``count`` forward passes, one by one."""
        run = self._sample_cuda if self.workload.device.type == "cuda" else self._sample_cpu
        samples = Samples()
        for _ in range(count):
            before, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
            samples.wall_s.append(run())
            samples.cpu_s.append((time.process_time_ns() - cpu) / 1e9)
            after = resource.getrusage(resource.RUSAGE_SELF)
            samples.page_faults.append(after.ru_minflt - before.ru_minflt)
            samples.switches.append(after.ru_nivcsw - before.ru_nivcsw)
        return samples

    def two_clocks(self, count: int) -> dict[str, Any]:
        """Time ``count`` passes with the clock of the samples and with another one.

        CUDA: events, and the host's clock, around many passes in a row, so that starting and waiting weigh little. CPU:
        the monotonic clock, which the system slews to the network's time, and the raw one, which it leaves alone.
        """
        first: list[float] = []
        second: list[float] = []
        on_cuda = self.workload.device.type == "cuda"
        in_a_row = max(1, math.ceil(CLOCKS_S / min(self.sample(3).wall_s))) if on_cuda else 1
        for _ in range(3 if on_cuda else count):
            self.workload.synchronise()
            started = _host_seconds(raw=not on_cuda)
            first.append(self._sample_cuda(in_a_row) if on_cuda else self._sample_cpu())
            second.append(_host_seconds(raw=not on_cuda) - started)
        ticks = [time.perf_counter_ns() for _ in range(10_000)]
        steps = [late - early for early, late in itertools.pairwise(ticks) if late > early]
        return {
            "names": ["CUDA events", "host clock"] if on_cuda else ["monotonic clock", "raw clock"],
            "first_s": first,
            "second_s": second,
            "resolution_s": min(steps) / 1e9,
        }

    def _sample_cpu(self) -> float:
        started = time.perf_counter_ns()
        self.workload.forward()
        return (time.perf_counter_ns() - started) / 1e9

    def _sample_cuda(self, passes: int = 1) -> float:
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self.workload.device):
            start.record()  # type: ignore[no-untyped-call]
            for _ in range(passes):
                self.workload.forward()
            end.record()  # type: ignore[no-untyped-call]
            end.synchronize()  # type: ignore[no-untyped-call]
        return float(start.elapsed_time(end)) / 1e3


def _host_seconds(*, raw: bool) -> float:
    """Return the host's time: raw is the hardware's, which nothing slews; where there is none, the monotonic one."""
    clock = getattr(time, "CLOCK_MONOTONIC_RAW", None) if raw else None
    return time.perf_counter() if clock is None else time.clock_gettime_ns(clock) / 1e9


def visit_size(latency_s: float) -> int:
    """Return how many forward passes one visit of the interleaving takes."""
    return max(1, round(VISIT_S / latency_s)) if latency_s > 0 else 1


def is_precise(wall_s: Sequence[float], sampling: Sampling) -> bool:
    """Tell whether the samples are enough: many, long and narrow enough."""
    if len(wall_s) < MIN_SAMPLES or sum(wall_s) < MIN_SAMPLED_S:
        return False
    return relative_half_width(wall_s, seed=sampling.seed) <= sampling.precision


def is_over_limit(wall_s: Sequence[float], sampling: Sampling) -> bool:
    """Tell whether the sampling time of a cell is used up."""
    if len(wall_s) < FEWEST_SAMPLES or sum(wall_s) < sampling.time_limit_s:
        return False
    if len(wall_s) >= FEWEST_FOR_INTERVAL:
        return True
    needed = FEWEST_FOR_INTERVAL * sum(wall_s) / len(wall_s)
    return needed > STRETCH_FOR_INTERVAL * sampling.time_limit_s


def relative_half_width(wall_s: Sequence[float], *, seed: int) -> float:
    """Return half the width of the 95 % interval of the median, relative to the median."""
    median, low, high = median_interval(wall_s, seed=seed)
    if low is None or high is None:
        return math.inf
    return (high - low) / 2 / median


def summarise(
    samples: Samples, *, batch: int, first_forward_s: float, yardstick: Measurement | None, seed: int
) -> tuple[Measurement, ...]:
    """Return the measurements that the samples of one cell, and the yardstick of the same rounds, give."""
    latency = summary("latency_s", samples.wall_s, seed=seed)

    def rate(seconds: float | None) -> float | None:
        return None if seconds is None else batch / seconds

    throughput = Measurement(
        metric="throughput_images_per_s",
        value=batch / latency.value,
        ci_low=rate(latency.ci_high),
        ci_high=rate(latency.ci_low),
        p10=rate(latency.p90),
        p90=rate(latency.p10),
    )
    relative: tuple[Measurement, ...] = ()
    if yardstick:
        low, high = interval_of_ratio(latency, yardstick)
        relative = (
            yardstick,
            Measurement(metric="relative_latency", value=latency.value / yardstick.value, ci_low=low, ci_high=high),
        )
    return (
        latency,
        throughput,
        *relative,
        summary("cpu_time_s", samples.cpu_s, seed=seed),
        summary("page_faults_per_forward", samples.page_faults, seed=seed),
        Measurement(
            metric="involuntary_switches_per_forward", value=sum(samples.switches) / max(1, len(samples.switches))
        ),
        Measurement(metric="first_forward_s", value=first_forward_s),
    )


def summary(metric: str, samples: Sequence[float], *, seed: int) -> Measurement:
    """Return the median of ``samples`` with its interval and percentiles, samples kept."""
    median, low, high = median_interval(samples, seed=seed)
    p10, p90 = (float(p) for p in np.percentile(samples, [10, 90]))
    return Measurement(metric=metric, value=median, ci_low=low, ci_high=high, p10=p10, p90=p90, samples=tuple(samples))


def samples_from_json(body: dict[str, Any]) -> Samples:
    """Return the samples that a worker sent."""
    return Samples(**{each.name: body[each.name] for each in fields(Samples)})
