"""Predict how long a run still takes: its cells, the start of workers, the rounds of sampling, and the last plots.

A cell takes the time of its model's last size, and more for larger forward passes: latency grows with the pixels, at
the exponent between the last two sizes. A model without a record is taken as the mean of the others. What a group takes
beyond its cells, mostly the start of workers, is expected again: in full if its models are new, otherwise as in the
last group. While cells are sampled, the sampler reports which share of the sampling is done.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sema_bench.driver.sampler import ENERGY_S, ENERGY_SETTLE_S
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.sampling import Sampling
from sema_bench.statistics import FEWEST_FOR_INTERVAL
from sema_bench.worker.probes.throughput import FEWEST_SAMPLES

#: A cell: its variant and its size. The batch of one that fills the memory is not known beforehand.
_Key = tuple[Hashable, Resolution]

#: Forward passes of a cell before its samples.
_OTHERS = 4
#: Wall time of one second of samples, before a group shows its own: untimed passes and the yardstick come with them.
_SAMPLING_COST = 1.15
#: Until a second group has ended, this part of what the first one took beyond its cells is expected again.
_START_AGAIN = 1 / 3
#: A cell that is skipped after a failure of a smaller one, in seconds.
_SKIPPED_S = 0.5
#: Statuses after which larger cells of the same variant are skipped.
_ENDS = ("skipped", "oom", "timeout")
#: Seconds for which a text is good: a new one looks at every missing cell, of which there may be 10,000.
_RENEW_S = 1.0


class TimeLeft:
    """The time left of a run; any thread may call its methods.

    Args:
        groups: the missing cells, in the groups that are measured side by side.
        sampling: the limits of a cell; without them nothing is timed.
        write_s: expected time of the last tables and plots.
    """

    def __init__(
        self, groups: Sequence[Sequence[Cell]], *, sampling: Sampling | None, now: float, write_s: float = 0.0
    ) -> None:
        self._group_of: dict[_Key, _Group] = {}
        variants: set[Hashable] = set()
        for cells in groups:
            missing = {key: cell for cell in cells if (key := _key(cell)) not in self._group_of}
            group = _Group(missing, has_new_models=variants.isdisjoint(variant for variant, _ in missing))
            variants |= {variant for variant, _ in missing}
            self._group_of |= dict.fromkeys(missing, group)
        self._groups = list(dict.fromkeys(self._group_of.values()))  # those with missing cells
        self._count = len(self._groups)
        self._sampling, self._started, self._write_s = sampling, now, write_s
        self._curves: dict[Hashable, _Curve] = {}
        self._beyond_s: dict[bool, float] = {}  # what a group took beyond its cells, by ``has_new_models``
        self._done_s, self._rate, self._last_end = 0.0, 1.0, now
        self._text, self._text_at = "", -math.inf
        self._lock = threading.RLock()

    def phase(self, cell: Cell, phase: str, share: float, *, now: float) -> None:
        """Note that a cell is in ``phase``, and which share of it is done."""
        with self._lock:
            if group := self._group_of.get(_key(cell)):
                group.started = now if group.started is None else group.started
                if phase == "sampling":
                    group.sampling_since = now if group.sampling_since is None else group.sampling_since
                    group.sampled_at = now
                group.shares[_key(cell)] = share

    def finished(self, record: Record, *, now: float) -> None:
        with self._lock:
            key = _key(record.cell)
            self._curves.setdefault(key[0], _Curve()).add(record)
            self._done_s, self._last_end = self._done_s + record.duration_s, now
            if not (group := self._group_of.pop(key, None)):
                return
            del group.missing[key]
            group.done.append(record)
            if not group.missing:
                self._groups.remove(group)
            rate = (now - self._started) / self._done_s if self._done_s else 1.0
            if group.started is not None:
                self._rate = min(1.0, rate)  # less than 1 if cells are counted side by side
                if not group.missing or len(self._groups) == self._count:
                    self._beyond_s[group.has_new_models] = group.beyond_s(now)
            elif not group.missing:  # other machines measure, and report no phases
                self._rate = rate

    def wrote(self, seconds: float) -> None:
        """Note how long the tables and plots of the records so far took."""
        with self._lock:
            self._write_s = seconds

    def seconds(self, *, now: float) -> float | None:
        """Return the time left; None before the first cell has ended."""
        with self._lock:
            if not self._groups:
                return max(self._write_s - (now - self._last_end), 0.0)
            if not self._curves:
                return None
            means: dict[Hashable, _Expected] = {}
            left = self._write_s
            for group in self._groups:
                cells = {key: self._expected(key, cell, means) for key, cell in group.missing.items()}
                beyond_s = self._beyond_s.get(group.has_new_models, self._beyond_s.get(True, 0.0) * _START_AGAIN)
                left += group.left_s(cells, self._rate, beyond_s, now)
            return left

    def text(self, *, now: float) -> str:
        """Return ``about 5 min left``, as it was up to a second ago."""
        with self._lock:
            if not self._groups and not self._write_s:
                return "done"
            if now - self._text_at >= _RENEW_S:
                left = self.seconds(now=now)
                self._text, self._text_at = "" if left is None else in_words(left), now
            return self._text

    def _expected(self, key: _Key, cell: Cell, means: dict[Hashable, _Expected]) -> _Expected:
        """Predict a missing cell; ``means`` caches those of models without a record."""
        variant, resolution = key
        if curve := self._curves.get(variant):
            return _Expected(_SKIPPED_S) if curve.last.status in _ENDS else self._from_curve(curve, cell)
        alike = (resolution, cell.batch, cell.batch_policy, cell.device, cell.mode)
        if alike not in means:
            ran = [self._from_curve(curve, cell) for curve in self._curves.values() if curve.last.status != "skipped"]
            means[alike] = _Expected(*map(statistics.fmean, zip(*ran, strict=True))) if ran else _Expected(0.0)
        return means[alike]

    def _from_curve(self, curve: _Curve, cell: Cell) -> _Expected:
        last = curve.last
        if last.status in _ENDS or self._sampling is None or cell.device == "meta":
            return _Expected(last.duration_s)
        latency = last.measurements.get("latency_s")
        if latency is None:
            return _Expected(last.duration_s * work(cell) / work(last.cell))
        fills = cell.batch_policy == "max"  # its batch keeps the work alike at all sizes
        pixels = cell.batch * cell.resolution.pixels / (last.cell.batch * last.cell.resolution.pixels)
        expected = latency.value * (1.0 if fills else math.pow(pixels, curve.exponent))
        if (1 + FEWEST_SAMPLES) * expected > self._sampling.wall_limit_s(cell.mode):
            return _Expected(_SKIPPED_S)
        limit_s, sampled_s = self._sampling.time_limit_s, sum(latency.samples)
        energy_s = ENERGY_SETTLE_S + ENERGY_S if "energy_j_per_image" in last.measurements else 0.0
        before_s = max(last.duration_s - sampled_s - energy_s + _OTHERS * (expected - latency.value), 0.0)
        samples = FEWEST_SAMPLES if expected > limit_s else FEWEST_FOR_INTERVAL
        most_s = usual_s = max(limit_s, samples * expected)
        if last.details.get("stop_reason") == "precision":
            usual_s = min(most_s, max(sampled_s, samples * expected))
        return _Expected(before_s, usual_s, most_s, energy_s if cell.device != "cpu" else 0.0)


class _Expected(NamedTuple):
    """The time of a cell before, for and after its samples; ``most_s`` is the limit of the samples."""

    before_s: float
    sampled_s: float = 0.0
    most_s: float = 0.0
    after_s: float = 0.0


@dataclass(eq=False)
class _Group:
    """Cells that are measured side by side."""

    missing: dict[_Key, Cell]
    has_new_models: bool
    done: list[Record] = field(default_factory=list)
    started: float | None = None
    sampling_since: float | None = None
    sampled_at: float = 0.0  # the last time that a share was reported
    shares: dict[_Key, float] = field(default_factory=dict)

    def beyond_s(self, now: float) -> float:
        """Estimate what the group takes beyond its cells; those that are missing are about to end."""
        assert self.started is not None
        durations = [record.duration_s for record in self.done]
        return max(now - self.started - sum(durations) - statistics.fmean(durations) * len(self.missing), 0.0)

    def left_s(self, cells: Mapping[_Key, _Expected], rate: float, beyond_s: float, now: float) -> float:
        """Predict when the group ends: from its start until its cells are sampled, then from the shares that are done.

        ``rate`` is the wall time of one second of its cells.
        """
        total_s = rate * sum(cell.before_s + cell.sampled_s + cell.after_s for cell in cells.values())
        if self.started is None:
            return total_s + (0.0 if self.done else beyond_s)
        shares = {key: self.shares.get(key, 0.0) for key in cells}
        if not any(cell.sampled_s for cell in cells.values()):
            return rate * sum(cell.before_s * (1 - shares[key]) for key, cell in cells.items())
        if self.sampling_since is None:
            done_s = rate * sum(record.duration_s for record in self.done)
            samples_s = sum(_SAMPLING_COST * cell.sampled_s + cell.after_s for cell in cells.values())
            return max(done_s + total_s + beyond_s - (now - self.started), samples_s)
        sampled = sum(shares[key] * cell.most_s for key, cell in cells.items())
        sampled += sum(sum(m.samples) for record in self.done if (m := record.measurements.get("latency_s")))
        left = sum(_samples_left_s(cell, shares[key]) for key, cell in cells.items())
        cost = (self.sampled_at - self.sampling_since + _SAMPLING_COST) / (sampled + 1)  # as if after one second more
        return max(left * cost - (now - self.sampled_at), 0.0) + sum(cell.after_s for cell in cells.values())


def _samples_left_s(cell: _Expected, share: float) -> float:
    """Predict the samples of a cell that are left; past the usual end they may stop at any time."""
    sampled_s = share * cell.most_s
    return cell.sampled_s - sampled_s if sampled_s < cell.sampled_s else max(cell.most_s - sampled_s, 0.0) / 2


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


def in_words(seconds: float) -> str:
    """Return ``about 5 min left``."""
    return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def _key(cell: Cell) -> _Key:
    return (cell.variant, cell.resolution)
