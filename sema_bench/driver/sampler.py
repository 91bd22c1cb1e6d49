"""Time prepared cells in turns, round by round, so that machine drift affects all of them alike.

The first cell of a group is the reference. Each round gives every other cell one ratio to it, of times taken side by
side. Sampling continues until all of these ratios are known.

Cells of one resolution are sampled in turns; different resolutions are measured minutes apart. On a shared machine the
same code was up to 1.6 times slower at the next resolution, which looks like growth. So the yardstick, a small fixed
network, takes part in the rounds of every group: in units of the yardstick, what slowed both cancels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sema_bench.driver.attempt import CellAttempt
from sema_bench.driver.executor import Listener
from sema_bench.driver.peaks import PeakCache, check_against_roofline
from sema_bench.driver.worker_pool import WorkerPool
from sema_bench.driver.worker_process import CellFailure
from sema_bench.machine.disturbance import Telemetry, Window, may_calm_down, summed_up
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Measurement
from sema_bench.spec.sampling import MORE_TIME, Sampling
from sema_bench.statistics import median_interval, paired_ratio
from sema_bench.worker.probes.throughput import (
    FEWEST_SAMPLES,
    LAUNCH_BOUND,
    VISIT_S,
    WARMUP_S,
    WARMUP_SHARE,
    fewest_samples,
    is_cold,
    is_enough,
    is_known,
    is_precise,
    is_warm,
    sampled_share,
    summarise,
    visit_size,
)
from sema_bench.worker.protocol import Prepare, Prepared, Release, Sample, Samples

#: A visit to the yardstick takes about this long. It sits out a round if it has more than this share of the sampled
#: time: beside two models it would otherwise cost a fifth of the time.
YARDSTICK_VISIT_S, YARDSTICK_SHARE = 0.1, 0.05
#: How long a CUDA cell runs by itself before its energy is read, and while it is read.
ENERGY_SETTLE_S, ENERGY_S = 1.0, 2.0
#: From this many steps, a visit opens with an untimed one (another model has used the caches since): it costs little.
SETTLE_FROM_COUNT = 5
#: A visit ends after this many times its planned length: on a crowded machine steps may become a hundred times slower.
_LONGEST_VISIT = 10


@dataclass(eq=False)
class _Timing:
    """The state of one cell since its worker was prepared."""

    attempt: CellAttempt
    prepared: Prepared
    latency_s: float
    rounds: list[Samples] = field(default_factory=list)
    rounds_s: list[float] = field(default_factory=list)  # the median of each round
    windows: list[Window] = field(default_factory=list)

    @property
    def cold(self) -> int:
        """Number of rounds that were warm-up: long passes have no warm-up before their rounds."""
        return int(not self.prepared.warmup_s and is_cold(self.rounds_s))

    @property
    def wall_s(self) -> list[float]:
        """All samples but those of warm-up."""
        return [second for samples in self.rounds[self.cold :] for second in samples.wall_s]

    def ratio_to(self, reference: _Timing) -> Measurement | None:
        """Return the ratio to ``reference``, which took the same rounds; None if all were warm-up."""
        first = max(self.cold, reference.cold)
        pairs = list(zip(self.rounds_s, reference.rounds_s, strict=False))[first:]  # one may have stopped
        if not pairs:
            return None
        ratio, low, high = paired_ratio(*zip(*pairs, strict=True))
        return Measurement(metric="paired_ratio", value=ratio, ci_low=low, ci_high=high)


class InterleavedSampler:
    """Prepares cells in their workers and samples them side by side; ``watch`` adds telemetry of the machine.

    If the ``yardstick`` fails, no latency is divided by it. Without ``peaks`` cells are not placed under the roofline.
    """

    def __init__(
        self,
        workers: WorkerPool,
        sampling: Sampling,
        listener: Listener,
        *,
        yardstick: Cell | None = None,
        watch: bool = False,
        peaks: PeakCache | None = None,
    ) -> None:
        self._workers, self._sampling, self._listener = workers, sampling, listener
        self._watch, self._peaks = watch, peaks
        self._random = random.Random(sampling.seed)
        self._timings: dict[CellAttempt, _Timing] = {}
        self._yardstick: _Timing | None = None
        self._unprepared = None if yardstick is None else CellAttempt(yardstick, timer="yardstick")
        self._telemetry: Telemetry | None = None
        self._saved_s = 0.0  # sampling time that earlier groups left over; negative if they needed more
        if yardstick is not None:
            workers.start("yardstick", yardstick)  # it imports torch meanwhile

    def prepare(self, attempt: CellAttempt) -> None:
        """Build a cell and warm it up; raise CellFailure if it does not run, or is too slow for its limit."""
        self._listener(attempt.cell, "warming up")
        self._timings[attempt] = self._prepare(attempt)

    def sample(self, attempts: Sequence[CellAttempt]) -> Iterator[tuple[CellAttempt, CellFailure | None]]:
        """Visit prepared cells in random order, round by round, until all are known or the time is used up.

        No cell leaves early, so that all medians come from the same rounds. A cell too slow for an interval is the
        exception: it stops after a few samples, because it is not ranked. Yield each attempt when it is done, with its
        failure if it has one.
        """
        for attempt in attempts:
            attempt.details["interleaved_with"] = [other.cell.model for other in attempts if other is not attempt]
        if self._watch and self._telemetry is None and attempts:
            self._telemetry = Telemetry(attempts[0].cell.device)
        self._renew_yardstick()
        timings = [self._timings.pop(attempt) for attempt in attempts]
        reasons: list[str] = []
        while timings and not reasons:
            visits = [*filter(self._goes_on, timings), *self._due_yardstick(timings)]
            self._random.shuffle(visits)
            for timing in visits:
                try:
                    self._visit(timing)
                except CellFailure as failure:
                    if timing is self._yardstick:
                        self._yardstick = None
                        continue
                    timings.remove(timing)
                    yield timing.attempt, failure
            reasons = self._stop_reasons(timings)
        for timing, reason in zip(timings, reasons, strict=True):
            try:
                self._finish(timing, timings[0], reason)
            except CellFailure as failure:
                yield timing.attempt, failure
            else:
                yield timing.attempt, None
        self._saved_s += sum(self._sampling.time_limit_s - sum(timing.wall_s) for timing in timings)
        for attempt in attempts:
            self._release(attempt)

    def _goes_on(self, timing: _Timing) -> bool:
        """True unless the passes of a cell are too long for an interval and it has enough of them."""
        return fewest_samples(timing.latency_s, self._sampling) > FEWEST_SAMPLES or not self._is_enough(timing)

    def _is_enough(self, timing: _Timing) -> bool:
        """True if a cell has enough samples; fewer than three rounds cannot show warm-up."""
        return len(timing.rounds) >= FEWEST_SAMPLES and is_enough(timing.wall_s, self._sampling)

    def _stop_reasons(self, timings: Sequence[_Timing]) -> list[str]:
        """Return why each of ``timings`` stops, or [] if the group continues; the first one is the reference."""
        if not timings or not all(map(self._is_enough, timings)):
            return []
        reference, *others = timings
        known = [is_known(timing.ratio_to(reference), self._sampling.precision) for timing in others]
        known.insert(0, all(known) if others else self._is_precise(reference))
        open_ = [not each and self._goes_on(timing) for each, timing in zip(known, timings, strict=True)]
        sampled_s = sum(sum(timing.wall_s) for timing in timings)
        has_time = sampled_s < self._sampling.time_limit_s * len(timings) + self._saved_s
        if any(open_) and self._goes_on(reference) and has_time:
            return []
        return ["precision" if each else "time limit" for each in known]

    def _is_precise(self, timing: _Timing) -> bool:
        """Check a cell without neighbours: it has no ratio to cancel what slows the machine down."""
        return is_precise(timing.wall_s, self._sampling) and not may_calm_down(timing.windows)

    def _prepare(self, attempt: CellAttempt) -> _Timing:
        limit = self._sampling.time_limit_s
        warmup_s = min(WARMUP_S, WARMUP_SHARE * limit)
        if attempt.cell.device.startswith("cuda"):  # its first pass is slow, whatever the later ones take
            warmup_s = WARMUP_SHARE * limit
        else:
            limit = warmup_s
        request = Prepare(self._workers.workload(attempt.cell), limit, warmup_s)
        prepared = self._workers.ask(attempt.timer, attempt, request)
        attempt.details |= {"warmups": 1 + len(prepared.warmup_s), "warm": prepared.warm, **prepared.details}
        limit = self._sampling.wall_limit_s(attempt.cell.mode)
        if FEWEST_SAMPLES * prepared.latency_s > limit:
            self._release(attempt)
            raise CellFailure(
                "timeout",
                f"one forward pass takes {prepared.latency_s:.1f} s; "
                f"{FEWEST_SAMPLES} of them do not fit into {limit:.0f} s; {MORE_TIME}",
            )
        return _Timing(attempt, prepared, prepared.latency_s)

    def _renew_yardstick(self) -> None:
        """Prepare the yardstick before the first group, and drop its samples before each later one."""
        if self._unprepared:
            attempt, self._unprepared = self._unprepared, None
            with contextlib.suppress(CellFailure):
                self._yardstick = self._prepare(attempt)
        if self._yardstick:
            self._yardstick.rounds, self._yardstick.rounds_s = [], []

    def _due_yardstick(self, timings: Sequence[_Timing]) -> list[_Timing]:
        if self._yardstick is None:
            return []
        sampled_s = sum(sum(timing.wall_s) for timing in timings)
        return [self._yardstick] if sum(self._yardstick.wall_s) <= YARDSTICK_SHARE * sampled_s else []

    def _visit(self, timing: _Timing) -> None:
        is_yardstick = timing is self._yardstick
        timing.attempt.begin_part()  # the wall limit holds for a visit: a cell may use what all groups have saved
        self._report(timing)
        seconds = YARDSTICK_VISIT_S if is_yardstick else VISIT_S
        count = visit_size(timing.latency_s, seconds)
        settle = 1 if count >= SETTLE_FROM_COUNT or is_yardstick else 0
        samples, window = self._take(timing, Sample(count, settle, limit_s=_LONGEST_VISIT * seconds))
        timing.windows += [window] if window else []
        timing.rounds.append(samples)
        timing.latency_s = statistics.median(samples.wall_s)
        timing.rounds_s.append(timing.latency_s)
        self._report(timing)

    def _report(self, timing: _Timing) -> None:
        if timing is not self._yardstick:
            self._listener(timing.attempt.cell, "sampling", sampled_share(timing.wall_s, self._sampling))

    def _take(self, timing: _Timing, request: Sample) -> tuple[Samples, Window | None]:
        """Take samples, and watch the machine meanwhile if the run has telemetry."""
        attempt = timing.attempt
        if not self._telemetry or timing is self._yardstick:
            return self._workers.ask(attempt.timer, attempt, request), None
        with self._telemetry.window(self._workers.start(attempt.timer, attempt.cell).pid) as window:
            samples = self._workers.ask(attempt.timer, attempt, request)
        count = len(samples.wall_s)
        images = (count + request.settle) * attempt.cell.batch
        return samples, dataclasses.replace(window(), images=images, samples=count)

    def _energy_windows(self, timing: _Timing) -> list[Window]:
        """Run a CUDA cell by itself for a while: cards refresh energy and power too slowly for a window of samples.

        The first part lets the readings settle after the previous model. Latency does not use these samples.
        """
        if not timing.attempt.cell.device.startswith("cuda"):
            return []
        for seconds in (ENERGY_SETTLE_S, ENERGY_S):
            window = self._take(timing, Sample(max(1, round(seconds / timing.latency_s))))[1]
        return [window] if window else []

    def _finish(self, timing: _Timing, reference: _Timing, stop_reason: str) -> None:
        attempt, prepared, cold = timing.attempt, timing.prepared, timing.cold
        measurements = summarise(
            functools.reduce(operator.add, timing.rounds[cold:]),
            batch=attempt.cell.batch,
            first_forward_s=prepared.first_forward_s,
            yardstick=self._yardstick_latency(),
            seed=self._sampling.seed,
        )
        attempt.add(measurements, {"stop_reason": stop_reason, "rounds": len(timing.rounds) - cold})
        if timing is not reference and (ratio := timing.ratio_to(reference)):
            attempt.add([ratio], {"reference": reference.attempt.cell.model})
        if cold:
            attempt.details["warmups"] += len(timing.rounds[0].wall_s)
        if not prepared.warmup_s:
            attempt.details["warm"] = is_warm(timing.rounds_s[cold:])
        if attempt.value("launch_share") >= LAUNCH_BOUND:
            attempt.details["launch_bound"] = True
        if attempt.cell.compiled and prepared.fresh:  # otherwise the inspector compiled first, and measured it
            took = max(0.0, prepared.first_forward_s - attempt.value("latency_s"))
            attempt.add([Measurement(metric="compile_s", value=took)])
        if self._telemetry:
            energy = self._energy_windows(timing)
            attempt.add(*summed_up(timing.windows[cold:], self._telemetry.absent, energy=energy))
        if self._peaks:
            check_against_roofline(self._peaks, attempt, prepared.traffic_bytes)

    def _yardstick_latency(self) -> Measurement | None:
        """Compute the median of the yardstick's samples in this group, with its interval."""
        if not self._yardstick or not self._yardstick.rounds:
            return None
        value, low, high = median_interval(self._yardstick.wall_s, seed=self._sampling.seed)
        return Measurement(metric="yardstick_s", value=value, ci_low=low, ci_high=high)

    def _release(self, attempt: CellAttempt) -> None:
        """Let the worker free its memory."""
        if self._workers.has(attempt.timer, attempt.cell):
            with contextlib.suppress(CellFailure):  # a worker that fails here is replaced at the next size
                self._workers.ask(attempt.timer, attempt, Release())
