"""Predict how long a run still takes, from the cells that it has finished.

The next size of a model takes the time of its last one, and more for forward passes whose latency grows with the
pixels, at the exponent between the last two sizes. A model without a record is taken as the mean of the others. Cells
of a group finish together, so one that is being sampled counts as mostly done. What the first group took beyond its
cells is mostly the start of workers, and a third of it is expected again, cell by cell.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, deque
from collections.abc import Hashable, Sequence

from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.sampling import Sampling

#: A cell: its variant and its size. The batch of one that fills the memory is not known beforehand.
_Key = tuple[Hashable, Resolution]

#: Forward passes of a cell: samples, samples if one takes longer than their time limit, and those before the samples.
_SAMPLES, _FEWEST, _OTHERS = 6, 3, 4
#: Part of a cell that is done at the start of a phase.
_SHARES = {"inspecting": 0.1, "warming up": 0.3, "sampling": 0.8}
#: Part of the time beside the cells of the first group that is not spent again.
_START = 2 / 3
#: A cell that is skipped after a failure of a smaller one, in seconds.
_SKIPPED_S = 0.5
#: Statuses after which larger cells of the same variant are skipped.
_ENDS = ("skipped", "oom", "timeout")
#: Seconds for which a text is good: a new one looks at every missing cell, of which there may be 10,000.
_RENEW_S = 1.0


class TimeLeft:
    """The time left of a run; without ``sampling``, the limits of a cell, nothing is timed."""

    def __init__(self, missing: Sequence[Cell], *, sampling: Sampling | None, now: float) -> None:
        self._missing = {_key(cell): cell for cell in missing}
        self._missing_of_size = Counter(resolution for _, resolution in self._missing)
        self._sampling, self._started = sampling, now
        self._curves: dict[Hashable, _Curve] = {}
        self._shares: dict[_Key, float] = {}
        self._done_s = 0.0
        self._first: Resolution | None = None
        self._first_ended, self._first_done_s = now, 0.0
        self._text, self._text_at = "", -math.inf

    def phase(self, cell: Cell, phase: str) -> None:
        """Note the phase of a cell; any thread may call this."""
        key = _key(cell)
        self._shares[key] = _SHARES.get(phase, self._shares.get(key, 0.0))

    def finished(self, record: Record, *, now: float) -> None:
        key = variant, resolution = _key(record.cell)
        if self._missing.pop(key, None):
            self._missing_of_size[resolution] -= 1
        self._shares.pop(key, None)
        self._curves.setdefault(variant, _Curve()).add(record)
        self._done_s += record.duration_s
        self._first = self._first or resolution
        if resolution == self._first:
            self._first_ended, self._first_done_s = now, self._done_s

    def seconds(self, *, now: float) -> float | None:
        """Return the time left; None before the first cell has ended."""
        shares = self._shares.copy()  # other threads add to the original meanwhile
        means: dict[Hashable, float] = {}
        left = under_way = 0.0
        for key, cell in self._missing.items():
            expected, share = self._expected_s(key, cell, means), shares.get(key, 0.0)
            left += expected * (1 - share)
            under_way += expected * share
        done = self._done_s + under_way
        if done <= 0:
            return None
        under_way_first = under_way if self._first and self._missing_of_size[self._first] else 0.0
        start = self._first_ended - self._started - self._first_done_s - under_way_first
        return left * max(now - self._started - max(start, 0.0) * _START, 0.0) / done

    def text(self, *, now: float) -> str:
        """Return ``about 5 min left``, as it was up to a second ago."""
        if not self._missing:
            return "done"
        if now - self._text_at >= _RENEW_S:
            left = self.seconds(now=now)
            words = "" if left is None else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            self._text, self._text_at = words and f"about {words} left", now
        return self._text

    def _expected_s(self, key: _Key, cell: Cell, means: dict[Hashable, float]) -> float:
        """Return the time of a missing cell; ``means`` caches those of models without a record."""
        variant, resolution = key
        if curve := self._curves.get(variant):
            return _SKIPPED_S if curve.last.status in _ENDS else self._from_curve(curve, cell)
        alike = (resolution, cell.batch, cell.batch_policy, cell.device, cell.mode)
        if alike not in means:
            ran = [curve for curve in self._curves.values() if curve.last.status != "skipped"]
            means[alike] = statistics.fmean(self._from_curve(curve, cell) for curve in ran) if ran else 0.0
        return means[alike]

    def _from_curve(self, curve: _Curve, cell: Cell) -> float:
        last = curve.last
        if last.status in _ENDS or self._sampling is None or cell.device == "meta" or cell.batch_policy == "max":
            return last.duration_s
        latency = last.measurements.get("latency_s")
        if latency is None:
            return last.duration_s * work(cell) / work(last.cell)
        pixels = cell.batch * cell.resolution.pixels / (last.cell.batch * last.cell.resolution.pixels)
        expected = latency.value * math.pow(pixels, curve.exponent)
        if (1 + _FEWEST) * expected > self._sampling.wall_limit_s(cell.mode):
            return _SKIPPED_S
        samples = _FEWEST if expected > self._sampling.time_limit_s else _SAMPLES
        more = _OTHERS * (expected - latency.value) + max(0.0, samples * expected - sum(latency.samples))
        return max(last.duration_s + more, 0.0)


class _Curve:
    """The last record of a variant, and how its latency grows."""

    last: Record

    def __init__(self) -> None:
        self._points: deque[tuple[int, float]] = deque(maxlen=2)

    def add(self, record: Record) -> None:
        self.last = record
        if latency := record.value("latency_s"):
            self._points.append((record.cell.resolution.pixels, latency))

    @property
    def exponent(self) -> float:
        """The growth of latency between the last two sizes, between 1 and 2; 1 with one size."""
        if len(self._points) < 2 or self._points[0][0] == self._points[1][0]:
            return 1.0
        (n, a), (m, b) = self._points
        return min(max(math.log(b / a) / math.log(m / n), 1.0), 2.0)


def _key(cell: Cell) -> _Key:
    return (cell.variant, cell.resolution)
