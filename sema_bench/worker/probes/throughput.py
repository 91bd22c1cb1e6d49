"""Latency and throughput: when to stop sampling, and how to summarise the samples.

A group is sampled until the 95 % interval of each cell's ratio to the reference, the first model of its group, is
within ``precision`` (relative half-width). A cell without neighbours has no ratio, and the bootstrap interval of its
median counts. Every cell takes at least 10 samples and 0.5 s, even beyond ``time_limit_s``. If a forward pass takes a
second, six samples suffice (the fewest with an interval), or three if six do not fit into six times the limit. The
driver applies these rules, so this file needs no torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from sema_bench.analysis.ratios import interval_of_ratio
from sema_bench.spec.record import Measurement, measurements_of
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import FEWEST_FOR_INTERVAL, median_interval
from sema_bench.worker.probes.base import Probe
from sema_bench.worker.protocol import Samples

MIN_SAMPLES = 10
MIN_SAMPLED_S = 0.5
FEWEST_SAMPLES = 3
#: A forward pass that takes this long needs fewer samples.
LONG_PASS_S = 1.0
#: A cell may take this many times its limit to reach the fewest samples with an interval.
STRETCH_FOR_INTERVAL = 6.0
#: One visit of the interleaving takes about this long, so that drift reaches every model within a second or two.
VISIT_S = 0.25
#: A cell on CUDA is bound by kernel launches from this ``launch_share`` on: the card waits for the host.
LAUNCH_BOUND = 0.9
#: Warm-up takes at most this share of the sampling limit, and this long; a pass that takes longer has none.
WARMUP_SHARE, WARMUP_S = 0.2, 0.5
#: A first round that is slower by this factor than the later ones was warm-up.
COLD = 1.1


class ThroughputProbe(Probe):
    """Latency and throughput, sampled interleaved with the other models at the same resolution."""

    kind = "timed"


def visit_size(latency_s: float, seconds: float) -> int:
    """Count the steps of a visit of about ``seconds``."""
    fewest = 2 if latency_s < LONG_PASS_S else 1  # 10 samples in as many rounds as an interval needs
    return max(fewest, round(seconds / latency_s)) if latency_s > 0 else 1


def fewest_samples(pass_s: float, sampling: Sampling) -> int:
    """Return the fewest samples that a cell takes, however precise they are."""
    if pass_s < LONG_PASS_S:
        return MIN_SAMPLES
    fit = FEWEST_FOR_INTERVAL * pass_s <= STRETCH_FOR_INTERVAL * sampling.time_limit_s
    return FEWEST_FOR_INTERVAL if fit else FEWEST_SAMPLES


def is_enough(wall_s: Sequence[float], sampling: Sampling) -> bool:
    """Decide whether there are enough samples, however precise they are."""
    return sum(wall_s) >= MIN_SAMPLED_S and len(wall_s) >= fewest_samples(statistics.median(wall_s), sampling)


def sampled_share(wall_s: Sequence[float], sampling: Sampling) -> float:
    """Return the share of its time limit that a cell has used; it may stop earlier, or borrow what others saved."""
    if not wall_s:
        return 0.0
    fewest = fewest_samples(statistics.median(wall_s), sampling)
    return min(1.0, sum(wall_s) / sampling.time_limit_s, len(wall_s) / fewest)


def is_precise(wall_s: Sequence[float], sampling: Sampling) -> bool:
    """Decide whether the samples of a cell without neighbours suffice: enough of them, with a narrow interval."""
    if not is_enough(wall_s, sampling):
        return False
    median, low, high = median_interval(wall_s, seed=sampling.seed)
    return low is not None and high is not None and (high - low) / 2 / median <= sampling.precision


def is_known(ratio: Measurement | None, precision: float) -> bool:
    """Decide whether the interval of a ratio is narrow enough."""
    if ratio is None or ratio.ci_low is None or ratio.ci_high is None:
        return False
    return math.log(ratio.ci_high / ratio.ci_low) / 2 <= precision


def is_cold(rounds_s: Sequence[float]) -> bool:
    """Decide from the medians of a cell's rounds whether the first one was warm-up."""
    return len(rounds_s) >= FEWEST_SAMPLES and rounds_s[0] > COLD * statistics.median(rounds_s[1:])


def is_warm(rounds_s: Sequence[float]) -> bool:
    """Check that three rounds in a row agree, as three passes of a warm-up do."""
    threes = zip(rounds_s, rounds_s[1:], rounds_s[2:], strict=False)
    return any(max(three) <= COLD * min(three) for three in threes)


def summarise(
    samples: Samples, *, batch: int, first_forward_s: float, yardstick: Measurement | None, seed: int
) -> tuple[Measurement, ...]:
    """Turn the samples of one cell, and the yardstick of the same rounds, into measurements."""
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
    launch_s = statistics.median(samples.launch_s) if samples.launch_s else None
    whole = zip(samples.wall_s, samples.backbone_s, samples.neck_s, strict=False)  # a classifier has no parts
    head_s = [wall - backbone - neck for wall, backbone, neck in whole]
    parts = (("backbone", samples.backbone_s), ("neck", samples.neck_s), ("head", head_s)) if head_s else ()
    return (
        latency,
        throughput,
        *relative,
        *(summary(f"latency_{part}_s", seconds, seed=seed) for part, seconds in parts),
        summary("cpu_time_s", samples.cpu_s, seed=seed),
        summary("page_faults_per_forward", samples.page_faults, seed=seed),
        *measurements_of(
            {
                "involuntary_switches_per_forward": sum(samples.switches) / max(1, len(samples.switches)),
                "first_forward_s": first_forward_s,
                "launch_share": None if launch_s is None else launch_s / latency.value,
            }
        ),
    )


def summary(metric: str, samples: Sequence[float], *, seed: int) -> Measurement:
    """Summarise ``samples`` by their median, its interval and percentiles."""
    median, low, high = median_interval(samples, seed=seed)
    p10, p90 = (float(p) for p in np.percentile(samples, [10, 90]))
    return Measurement(metric=metric, value=median, ci_low=low, ci_high=high, p10=p10, p90=p90, samples=tuple(samples))
