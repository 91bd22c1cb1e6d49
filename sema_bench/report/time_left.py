"""Predict how long a run still takes: its cells, the start of workers, the rounds of sampling, and the last plots.

A cell takes the time of its model's last size, plus more for larger forward passes: latency grows with the pixels, at
the exponent between the first size and the last. All cells of a group take the same rounds of sampling: as many as at
other sizes, or more if the last one ran out of time. A group takes at most its own time plus what earlier groups left
over. A model without a record counts as the mean of the others. Time that a group takes beyond its cells, mostly to
start workers, is expected again: in full if its models are new, otherwise as in the last group.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sema_bench.driver.sampler import ENERGY_S, ENERGY_SETTLE_S
from sema_bench.spec.cell import Cell
from sema_bench.spec.plan import work
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.spec.sampling import Sampling
from sema_bench.spec.units import duration
from sema_bench.statistics import FEWEST_FOR_INTERVAL
from sema_bench.worker.probes.throughput import FEWEST_SAMPLES, MIN_SAMPLED_S, VISIT_S, fewest_samples, visit_size

#: A cell: its variant and its size. A batch that fills the memory is not known beforehand.
_Key = tuple[Hashable, Resolution]

#: Forward passes of a cell before its samples.
_OTHERS = 4
#: Wall time per second of samples, until a group has ended: untimed passes and the yardstick add to it.
_SAMPLING_COST = 1.15
#: Until a second group has ended, expect this part of the time that the first one took beyond its cells.
_START_AGAIN = 1 / 3
#: Seconds that a cell takes if it is skipped because a smaller one failed.
_SKIPPED_S = 0.5
#: A group that takes longer than expected is always expected to take this share of its time more.
_OVERTIME = 0.1
#: Statuses after which larger cells of the same variant are skipped.
_ENDS = ("skipped", "oom", "timeout")
#: Seconds to keep a text: a new one looks at every missing cell, and there may be 10,000.
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
        self._saved_s, self._cost = 0.0, _SAMPLING_COST
        self._text, self._text_at = "", -math.inf
        self._lock = threading.RLock()

    def phase(self, cell: Cell, phase: str, share: float, *, now: float) -> None:
        """Note that a cell is in ``phase``, and which share of it is done."""
        with self._lock:
            if group := self._group_of.get(_key(cell)):
                group.started = now if group.started is None else group.started
                if phase == "sampling":
                    group.sampling_since = now if group.sampling_since is None else group.sampling_since
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
                self._note_sampling(group, now)
            rate = (now - self._started) / self._done_s if self._done_s else 1.0
            if group.started is not None:
                self._rate = min(1.0, rate)  # less than 1 if cells are counted side by side
                if not group.missing or len(self._groups) == self._count:
                    self._beyond_s[group.has_new_models] = group.beyond_s(now)
            elif not group.missing:  # other machines measure, and report no phases
                self._rate = rate

    def _note_sampling(self, group: _Group, now: float) -> None:
        """Learn from a finished group how much time it left over, and what a second of samples costs."""
        if self._sampling and group.sampling_since is not None:
            sampled_s = [s for record in group.done if (s := record.sampled_s)]
            self._saved_s += len(sampled_s) * self._sampling.time_limit_s - sum(sampled_s)
            if sampled_s:
                self._cost = max(1.0, (now - group.sampling_since) / sum(sampled_s))

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
            left, saved_s = self._write_s, self._saved_s
            for group in self._groups:
                cells = {key: self._expected(key, cell, means) for key, cell in group.missing.items()}
                sampled_s, over_s = self._samples_of(group, cells.values(), saved_s)
                saved_s -= over_s
                beyond_s = self._beyond_s.get(group.has_new_models, self._beyond_s.get(True, 0.0) * _START_AGAIN)
                left += group.left_s(cells, sampled_s, self._rate, self._cost, beyond_s, now)
            return left

    def _samples_of(self, group: _Group, cells: Collection[_Expected], saved_s: float) -> tuple[float, float]:
        """Predict the seconds of samples of a group, done ones included, and by how much they exceed its own time."""
        if self._sampling is None:
            return 0.0, 0.0
        done = [seconds for record in group.done if (seconds := record.sampled_s)]
        timed = [cell for cell in cells if cell.visit_s]
        limit_s = self._sampling.time_limit_s * (len(done) + len(timed))
        staying = [cell for cell in timed if cell.stays]
        own_s = sum(done) + sum(cell.visit_s * cell.least for cell in timed if cell not in staying)
        round_s = sum(cell.visit_s for cell in staying)
        least = max((cell.least for cell in staying), default=0.0)
        if len(staying) > 1:
            least = max(least, FEWEST_FOR_INTERVAL)
        least_s = own_s + round_s * least
        usual_s = own_s + round_s * max(least, statistics.fmean(cell.usual for cell in staying) if staying else 0.0)
        if any(cell.unknown for cell in staying):
            usual_s = max(usual_s, limit_s)
        sampled_s = min(usual_s, max(least_s, limit_s + saved_s))
        return sampled_s, sampled_s - limit_s

    def text(self, *, now: float) -> str:
        """Return ``about 5 min left``; the text may be up to a second old."""
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
        fills = cell.batch_policy == "max"  # its batch keeps the work the same at all sizes
        pixels = cell.batch * cell.resolution.pixels / (last.cell.batch * last.cell.resolution.pixels)
        expected = latency.value * (1.0 if fills else math.pow(pixels, curve.exponent))
        if (1 + FEWEST_SAMPLES) * expected > self._sampling.wall_limit_s(cell.mode):
            return _Expected(_SKIPPED_S)
        sampled_s = sum(latency.samples)
        energy_s = ENERGY_SETTLE_S + ENERGY_S if "energy_j_per_image" in last.measurements else 0.0
        before_s = max(last.duration_s - sampled_s - energy_s + _OTHERS * (expected - latency.value), 0.0)
        fewest, visit_s = fewest_samples(expected, self._sampling), _visit_s(expected)
        least = max(MIN_SAMPLED_S / visit_s, fewest / visit_size(expected, VISIT_S))
        least = max(least, FEWEST_SAMPLES)
        unknown = last.details.get("stop_reason") == "time limit"
        after_s = energy_s if cell.device != "cpu" else 0.0
        stays = fewest > FEWEST_SAMPLES
        return _Expected(before_s, visit_s, math.ceil(least), curve.rounds, stays, unknown, after_s)


class _Expected(NamedTuple):
    """The time of a cell before and after its rounds, and of one round; the fewest and the usual number of rounds."""

    before_s: float
    visit_s: float = 0.0
    least: float = 0.0
    usual: float = 0.0
    stays: float = 0.0  # true if it takes the rounds of its group, not its own fewest
    unknown: float = 0.0  # true if its ratio was not known at the last size
    after_s: float = 0.0


@dataclass(eq=False)
class _Group:
    """Cells that are measured side by side."""

    missing: dict[_Key, Cell]
    has_new_models: bool
    done: list[Record] = field(default_factory=list)
    started: float | None = None
    sampling_since: float | None = None
    shares: dict[_Key, float] = field(default_factory=dict)

    def beyond_s(self, now: float) -> float:
        """Estimate the time that the group takes beyond its cells; assume that missing cells are about to end."""
        assert self.started is not None
        durations = [record.duration_s for record in self.done]
        return max(now - self.started - sum(durations) - statistics.fmean(durations) * len(self.missing), 0.0)

    def left_s(
        self, cells: Mapping[_Key, _Expected], sampled_s: float, rate: float, cost: float, beyond_s: float, now: float
    ) -> float:
        """Predict the time left of the group, counted from its start, or, once it samples, from the start of that.

        ``sampled_s`` is the time of all its samples, ``rate`` the wall time per second of its cells, and ``cost`` that
        per second of samples.
        """
        total_s = rate * (sampled_s + sum(cell.before_s + cell.after_s for cell in cells.values()))
        if self.started is None:
            return total_s + (0.0 if self.done else beyond_s)
        after_s = sum(cell.after_s for cell in cells.values())
        if not any(cell.visit_s for cell in cells.values()):
            return rate * sum(cell.before_s * (1 - self.shares.get(key, 0.0)) for key, cell in cells.items())
        if self.sampling_since is None:
            done_s = rate * sum(record.duration_s for record in self.done)
            return max(done_s + total_s + beyond_s - (now - self.started), cost * sampled_s + after_s)
        spent_s = now - self.sampling_since
        return max(cost * sampled_s - spent_s, _OVERTIME * spent_s) + after_s


def _visit_s(latency_s: float) -> float:
    return visit_size(latency_s, VISIT_S) * latency_s


class _Curve:
    """The last record of a variant, how its latency grows, and how many rounds a size takes."""

    last: Record

    def __init__(self) -> None:
        self._points: list[tuple[int, float]] = []
        self._rounds: list[float] = []

    def add(self, record: Record) -> None:
        self.last = record
        if latency := record.value("latency_s"):
            self._points.append((record.cell.resolution.pixels, latency))
            self._rounds.append(record.sampled_s / _visit_s(latency))

    @property
    def rounds(self) -> float:
        return max(statistics.fmean(self._rounds), self._rounds[-1])

    @property
    def exponent(self) -> float:
        """The growth of latency from the first size to the last, between 1 and 2; near 1 while they are close."""
        (n, a), (m, b) = self._points[0], self._points[-1]
        return min(max((math.log(b / a) + 1.0) / (math.log(m / n) + 1.0), 1.0), 2.0) if m > n else 1.0


def in_words(seconds: float) -> str:
    """Return ``about 5 min left``."""
    return f"about {duration(seconds)} left"


def _key(cell: Cell) -> _Key:
    return (cell.variant, cell.resolution)
