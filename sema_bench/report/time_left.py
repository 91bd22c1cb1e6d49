"""Predict how long a run still takes, from the cells that it has finished.

A small cell takes a constant time (building, counting, sampling up to a limit), a large one as many forward passes as
the sampling needs at least. So the next size of a model is predicted from its last one: the same time, more passes at a
latency that grows with the pixels, at the exponent between its last two sizes. A model without a record is taken as the
mean of the others.

Cells of a group finish together. One that is being sampled counts as mostly done. What the first group took beyond its
cells is mostly the start of workers, and a third of it is expected again, cell by cell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence

from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.record import Record
from sema_bench.spec.sampling import Sampling

#: Forward passes of a cell: samples, samples if one takes longer than their time limit, and those before the samples.
_SAMPLES, _FEWEST, _OTHERS = 6, 3, 4
#: Part of a cell that is done at the start of a phase.
_SHARES = {"inspecting": 0.1, "warming up": 0.3, "sampling": 0.8}
#: Part of the time beside the cells of the first group that is not spent again.
_START = 2 / 3
#: A cell that is skipped after a failure of a smaller one, in seconds.
_SKIPPED_S = 0.5


class TimeLeft:
    """The time left of a run.

    Args:
        missing: the cells to measure, in order.
        sampling: the limits of a cell; None if nothing is timed, so that all cells take the same time.
        now: seconds on any clock.
    """

    def __init__(self, missing: Sequence[Cell], *, sampling: Sampling | None, now: float) -> None:
        self._missing = {_key(cell): cell for cell in missing}
        self._sampling, self._started = sampling, now
        self._curves: dict[Hashable, list[Record]] = {}
        self._shares: dict[Hashable, float] = {}
        self._first: Hashable = None
        self._done_s = self._sunk_s = 0.0

    def phase(self, cell: Cell, phase: str) -> None:
        """Take note that ``cell`` is in ``phase``."""
        self._shares[_key(cell)] = _SHARES.get(phase, self._shares.get(_key(cell), 0.0))

    def finished(self, record: Record, *, now: float) -> None:
        """Take note of one more record."""
        self._missing.pop(_key(record.cell), None)
        self._curves.setdefault(record.cell.variant, []).append(record)
        self._done_s += record.duration_s
        self._first = self._first or record.cell.resolution
        if record.cell.resolution == self._first:
            self._sunk_s = max(0.0, now - self._started - self._done_s - self._under_way_s()) * _START

    def seconds(self, *, now: float) -> float | None:
        """Return the time left; None before the first cell has ended."""
        done = self._done_s + self._under_way_s()
        if done <= 0:
            return None
        left = sum(self._expected_s(cell) * (1 - self._shares.get(key, 0)) for key, cell in self._missing.items())
        return left * max(now - self._started - self._sunk_s, 0.0) / done

    def text(self, *, now: float) -> str:
        """Return ``about 5 min left``."""
        if not self._missing:
            return "done"
        seconds = self.seconds(now=now)
        if seconds is None:
            return ""
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"

    def _under_way_s(self) -> float:
        under_way = [key for key in self._shares if key in self._missing]
        return sum(self._expected_s(self._missing[key]) * self._shares[key] for key in under_way)

    def _expected_s(self, cell: Cell) -> float:
        if records := self._curves.get(cell.variant):
            return self._from_curve(records, cell)
        ran = [records for records in self._curves.values() if records[-1].status != "skipped"]
        return statistics.fmean(self._from_curve(records, cell) for records in ran) if ran else 0.0

    def _from_curve(self, records: Sequence[Record], cell: Cell) -> float:
        last = records[-1]
        if last.status in ("skipped", "oom", "timeout"):  # larger cells are skipped then
            return _SKIPPED_S if cell.variant == last.cell.variant else last.duration_s
        if self._sampling is None or cell.device == "meta" or cell.batch_policy == "max":
            return last.duration_s
        latency = last.measurements.get("latency_s")
        if latency is None:
            return last.duration_s * work(cell) / work(last.cell)
        pixels = cell.batch * cell.resolution.pixels / (last.cell.batch * last.cell.resolution.pixels)
        expected = latency.value * math.pow(pixels, _exponent(records))
        if (1 + _FEWEST) * expected > self._sampling.wall_limit_s(cell.mode):
            return _SKIPPED_S
        samples = _FEWEST if expected > self._sampling.time_limit_s else _SAMPLES
        more = _OTHERS * (expected - latency.value) + max(0.0, samples * expected - sum(latency.samples))
        return max(last.duration_s + more, 0.0)


def _exponent(records: Sequence[Record]) -> float:
    """Return the growth of latency between the last two sizes, between 1 and 2; 1 with one size."""
    points = [(r.cell.resolution.pixels, latency) for r in records if (latency := r.value("latency_s"))]
    if len(points) < 2 or points[-2][0] == points[-1][0]:
        return 1.0
    (n, a), (m, b) = points[-2:]
    return min(max(math.log(b / a) / math.log(m / n), 1.0), 2.0)


def _key(cell: Cell) -> Hashable:
    """Identify a cell; the batch of one that fills the memory is not known beforehand."""
    return (cell.variant, cell.resolution)
