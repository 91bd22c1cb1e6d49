"""Time the steps of a workload, in the worker. Between two readings of the clock lies one call, ``workload.step``."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import resource
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._pytree import tree_leaves

from sema_bench.errors import ProbeError
from sema_bench.worker.probes.throughput import is_warm
from sema_bench.worker.protocol import NO_SAMPLES, ClockReadings, Samples
from sema_bench.worker.workload import Step, Workload

#: On CUDA, steps between two events last this long when its clock is compared with the host's.
CLOCKS_S = 0.5

T = TypeVar("T")


class Stopwatch:
    """Times the steps of one workload."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.output_bytes = 0
        self._on_cuda = workload.device.type == "cuda"

    def first_forward(self) -> tuple[float, bool]:
        """Time the first step; return its seconds, and whether no compiler cache shortened it.

        A bad output raises ProbeError.
        """
        output, took, fresh = self.workload.first_step()
        outputs = tree_leaves(output)
        self.output_bytes = sum(each.nbytes for each in outputs)
        images = self.workload.cell.batch
        if any(len(each) != images or not bool(each.isfinite().all()) for each in outputs):
            raise ProbeError("the model's output is not finite, or not one row for each image; its time means nothing")
        self.workload.check_frozen(output)
        return took, fresh

    def warm_up(self, limit_s: float) -> tuple[list[float], bool]:
        """Run until three steps in a row agree, or ``limit_s`` is over; return the times, and whether they agree.

        The second step still faults in memory; once three steps agree, the heap has settled.
        """
        times: list[float] = []
        while not times or sum(times) < limit_s:
            times += self.sample(1).wall_s
            if is_warm(times[-3:]):
                return times, True
        return times, False

    def sample(self, count: int, *, limit_s: float | None = None) -> Samples:
        """Time ``count`` steps, one by one; stop early once they exceed ``limit_s``."""
        left_s = math.inf if limit_s is None else limit_s
        rows: list[tuple[float, float, int, int]] = []
        launches: list[float] = []
        parts: list[tuple[float, float]] = []
        starts: list[Any] = []  # of the parts of a detector or segmenter
        with self.workload.running() as step, self.workload.noting_parts(lambda: starts.append(self._now())):
            for _ in range(count):
                starts.clear()
                before, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
                if self._on_cuda:
                    wall_s, output, launch_s = event_seconds(step)
                    launches.append(launch_s)
                else:
                    wall_s, output = wall_seconds(step)
                cpu_s = (time.process_time_ns() - cpu) / 1e9
                after = resource.getrusage(resource.RUSAGE_SELF)
                rows.append((wall_s, cpu_s, after.ru_minflt - before.ru_minflt, after.ru_nivcsw - before.ru_nivcsw))
                self.workload.check(output)
                if starts:
                    parts.append((_seconds_between(*starts[:2]), _seconds_between(*starts[1:])))
                left_s -= wall_s
                if left_s < 0:
                    break
        if not rows:
            return NO_SAMPLES
        backbone_s, neck_s = zip(*parts, strict=True) if parts else ((), ())
        samples = Samples(*zip(*rows, strict=True))
        return dataclasses.replace(samples, launch_s=tuple(launches), backbone_s=backbone_s, neck_s=neck_s)

    def _now(self) -> Any:
        """Read the clock in ns or, on CUDA, record an event."""
        if not self._on_cuda:
            return time.perf_counter_ns()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def two_clocks(self, count: int) -> ClockReadings:
        """Time ``count`` steps with the clock of the samples and with another one.

        CUDA: events, and the host's clock, around many steps in a row, so that starting and waiting hardly count. CPU:
        the monotonic clock, which the system slews to the network's time, and the raw one, which it leaves alone.
        """
        if self._on_cuda:
            in_a_row = max(1, math.ceil(CLOCKS_S / min(self.sample(3).wall_s)))
            names, count, other = ("CUDA events", "host clock"), 3, time.perf_counter
            timed: Callable[[Step], tuple[Any, ...]] = functools.partial(event_seconds, times=in_a_row)
        else:
            names, timed, other = ("monotonic clock", "raw clock"), wall_seconds, _raw_seconds
        readings: list[tuple[float, float]] = []
        with self.workload.running() as step:
            for _ in range(count):
                self.workload.synchronise()
                started = other()
                readings.append((timed(step)[0], other() - started))
        first, second = zip(*readings, strict=True)
        ticks = [time.perf_counter_ns() for _ in range(10_000)]
        steps = [late - early for early, late in itertools.pairwise(ticks) if late > early]
        return ClockReadings(names, first, second, resolution_s=min(steps) / 1e9)


def event_seconds(work: Callable[[], T], times: int = 1) -> tuple[float, T, float]:
    """Time ``times`` calls in a row by events of the current CUDA device.

    Return the sum, the last result, and the host's time to launch them all, which ends before the card has finished.
    """
    event: Any = torch.cuda.Event
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    began = time.perf_counter_ns()
    for _ in range(times - 1):
        work()
    result = work()
    end.record()
    launch_s = (time.perf_counter_ns() - began) / 1e9
    end.synchronize()
    return start.elapsed_time(end) / 1e3, result, launch_s


def _seconds_between(first: Any, later: Any) -> float:
    """Take the difference of two CUDA events, or of two readings of the clock in ns."""
    seconds: float = (later - first) / 1e9 if isinstance(first, int) else first.elapsed_time(later) / 1e3
    return seconds


def wall_seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Time one call with the monotonic clock; return the seconds, and its result."""
    started = time.perf_counter_ns()
    result = work()
    return (time.perf_counter_ns() - started) / 1e9, result


def _raw_seconds() -> float:
    return time.clock_gettime_ns(getattr(time, "CLOCK_MONOTONIC_RAW", time.CLOCK_MONOTONIC)) / 1e9
