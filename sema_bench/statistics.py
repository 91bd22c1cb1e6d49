"""Compute intervals of a median, by bootstrap or from quartiles if a file has no samples, and of paired ratios.

The sampler computes a bootstrap after every few samples, so nothing is resampled: a bootstrap median is an order
statistic of n draws from the sorted sample, and the k-th smallest of n uniform numbers is Beta(k, n + 1 − k)
distributed. Looking up the sample at the rank of such a number takes 0.1 ms instead of 40 ms at n = 2000.

pytest-benchmark keeps five numbers of a benchmark and its rounds. The standard error of a median is 1.2533 σ / √n, and
the quartiles of a normal distribution lie 0.6745 σ from its median (McGill, Tukey & Larsen, The American Statistician
32, 1978). Times are skewed, so σ comes from the quartile that lies farther away, and Student's t of n − 1 degrees
replaces 1.96. No interval reaches beyond the smallest and largest sample. In tests with 2000 draws each of normal,
log-normal and exponential samples, and of normal ones with outliers, 93 to 99 % of the intervals held the median.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

#: From this n on, 1 − 2^(1−n) exceeds 95 %.
FEWEST_FOR_INTERVAL = 6


def median_interval(
    samples: Sequence[float], *, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Return the median of ``samples`` and the bounds of its percentile bootstrap interval.

    Fewer than six samples give no interval (both bounds are None). Even the range from smallest to largest holds the
    true median only with probability 1 − 2^(1−n) (93.75 % at five), so no distribution-free interval of 95 % exists.

    The samples are assumed to be independent. Neighbours in time on a busy machine are not: at a lag-one
    correlation ρ the true interval is about √((1 + ρ) / (1 − ρ)) times wider (1.7 times at ρ = 0.5).
    The remedy is to interleave the models, which spreads out the samples of each.

    The bounds of 1000 ``resamples`` are themselves uncertain by 5 to 10 % of the width. Values out of range raise
    ValueError.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if ordered.ndim != 1 or ordered.size == 0:
        raise ValueError(f"expected a flat sequence of at least one sample, got shape {ordered.shape}")
    if not np.isfinite(ordered).all():
        raise ValueError("samples must be finite; a failed iteration is a failed cell, not a sample")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1")
    n = ordered.size
    middle = float(np.median(ordered))
    if n < FEWEST_FOR_INTERVAL:
        return middle, None, None

    rng = np.random.default_rng(seed)
    upper = n // 2 + 1  # rank, counted from 1, of the (upper) middle of n draws
    position = rng.beta(upper, n + 1 - upper, size=resamples)
    medians = ordered[_ranks(position, n)]
    if n % 2 == 0:  # the lower middle, given the upper: the largest of upper − 1 uniforms below it
        position = position * rng.random(resamples) ** (1 / (upper - 1))
        medians = (medians + ordered[_ranks(position, n)]) / 2
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return middle, min(float(low), middle), max(float(high), middle)


def _ranks(position: np.ndarray, n: int) -> np.ndarray:
    return np.minimum((position * n).astype(np.intp), n - 1)


def paired_ratio(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the median ratio of paired times with its 95 % interval, or no interval for fewer than six pairs.

    The i-th values were taken side by side, so what slows both down cancels in their ratio. The interval is that of the
    sign test: it lies between two of the sorted ratios and assumes no shape of the noise. To look after every round,
    and stop when it is narrow, favours lucky rounds: with 2.5 % on each side it missed up to 8 % of true ratios. So
    each side has 1/64, the least that six rounds allow, and it missed up to 6 %.
    """
    ratios = sorted(top / bottom for top, bottom in zip(tops, bottoms, strict=True))
    middle = float(np.median(ratios))
    outside = _outside(len(ratios))
    return (middle, ratios[outside - 1], ratios[-outside]) if outside else (middle, None, None)


@functools.cache
def _outside(n: int) -> int:
    """Return the rank, from either end of n sorted values, of the bounds of the interval; 0 if there are too few."""
    chances = itertools.accumulate(math.comb(n, heads) for heads in range(n + 1))
    return next(k for k, chance in enumerate(chances) if 64 * chance > 2**n)


#: Fewer rounds give no useful quartiles.
FEWEST_ROUNDS = 5
#: Details of a record without samples: what its interval was estimated from, or why it has none.
ESTIMATED, NO_INTERVAL = "interval_estimated_from", "no_interval"
#: Detail of a benchmark that pytest-benchmark timed: its number of rounds.
ROUNDS = "rounds"


def estimated_interval(
    median: float,
    rounds: int,
    *,
    quartiles: tuple[float, float] | None,
    extremes: tuple[float, float] | None,
) -> tuple[float, float] | None:
    """Return the 95 % interval of a median; None if quartiles and extremes do not give one.

    From six samples on, the ``extremes`` (smallest and largest) alone are an interval.
    """
    if rounds < FEWEST_ROUNDS:
        return None
    low, high = -math.inf, math.inf
    if quartiles is not None:
        sigma = max(median - quartiles[0], quartiles[1] - median) / 0.6745
        half = student_t(rounds - 1, 0.95) * 1.2533 * sigma / math.sqrt(rounds)
        low, high = median - half, median + half
    elif rounds < FEWEST_FOR_INTERVAL:
        return None
    if extremes is not None:
        low, high = max(low, extremes[0]), min(high, extremes[1])
    return (low, high) if math.isfinite(high - low) else None


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean of ``values`` with its 95 % interval by Student's t; both ends are None for a single value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = student_t(len(values) - 1, 0.95) * spread / math.sqrt(len(values))
    return mean, mean - half, mean + half


def student_t(freedom: int, level: float) -> float:
    """Return the two-sided quantile of Student's t: 12.7 at one degree of freedom and 0.95, 1.96 at infinity."""
    from scipy.special import stdtrit  # scipy.stats would take half a second to import

    return float(stdtrit(freedom, (1 + level) / 2))
