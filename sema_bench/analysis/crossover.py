"""From which resolution one model is faster than another, as far as the measurements can tell.

Two latency curves are compared at every measured size that lies within the range of both; where one of them
was not measured at that size it is interpolated along a straight line in log-log. Nothing is extrapolated. At
each size the faster model is *known* when the two 95 % intervals do not overlap (stricter than a test of the
difference at 95 %), and *level* when they do. A crossing is a change of the known faster model, so a pair that
swaps places within its noise does not cross; sizes that are level on the way make it ``unclear`` where.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sema_bench.analysis.conditions import Conditions, by_model
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where the faster model changes, by interpolation of log-log lines between ``low`` and ``high``.

    Attributes:
        pixels: H · W at which the two take equal time.
        low_pixels, high_pixels: the nearest sizes around it at which the faster model is known.
        faster_below, faster_above: model names.
        unclear: whether sizes between the two are level, or an end has no interval: ``pixels`` is then a guess.
    """

    pixels: float
    low_pixels: float
    high_pixels: float
    faster_below: str
    faster_above: str
    unclear: bool

    @property
    def side(self) -> float:
        """Side of the square image of that many pixels."""
        return math.sqrt(self.pixels)


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Two models under the same conditions.

    Attributes:
        crossings: smallest first; empty where one model is faster throughout, or none ever is.
        faster: the model that is faster wherever the two differ, "" if that changes or they never differ.
        ratio_low, ratio_high: range of latency_b / latency_a over the sizes at which the two differ, over all common
            ones where they never do; None without common sizes.
        level_pixels: sizes at which the intervals overlap.
        sizes: how many sizes were compared.
        sizes_without_interval: how many of them had a latency without an interval, compared by its value alone.
        low_pixels, high_pixels: range that was compared.
    """

    model_a: str
    model_b: str
    conditions: Conditions
    crossings: tuple[Crossing, ...] = ()
    faster: str = ""
    ratio_low: float | None = None
    ratio_high: float | None = None
    level_pixels: tuple[float, ...] = ()
    sizes: int = 0
    sizes_without_interval: int = 0
    low_pixels: float | None = None
    high_pixels: float | None = None

    @property
    def statement(self) -> str:
        """One sentence: ``b is faster above 437 px, a below``."""
        if self.sizes == 0:
            return "no common size was measured"
        caveat = f"; {self.sizes_without_interval} of {self.sizes} sizes without interval"
        return self._finding() + (caveat if self.sizes_without_interval else "")

    def rows(self) -> list[dict[str, str | int | float | bool | None]]:
        """Return one row per crossing, or one without a crossing."""
        pair = {"model_a": self.model_a, "model_b": self.model_b, **self.conditions.as_dict()}
        common = {
            "sizes": self.sizes,
            "sizes_without_interval": self.sizes_without_interval,
            "low_pixels": self.low_pixels,
            "high_pixels": self.high_pixels,
            "latency_ratio_low": self.ratio_low,
            "latency_ratio_high": self.ratio_high,
            "statement": self.statement,
        }
        if not self.crossings:
            none = dict.fromkeys(("crossing_pixels", "crossing_low_pixels", "crossing_high_pixels", "unclear"))
            return [{**pair, **none, "faster_below": self.faster, "faster_above": self.faster, **common}]
        return [
            {
                **pair,
                "crossing_pixels": c.pixels,
                "crossing_low_pixels": c.low_pixels,
                "crossing_high_pixels": c.high_pixels,
                "unclear": c.unclear,
                "faster_below": c.faster_below,
                "faster_above": c.faster_above,
                **common,
            }
            for c in self.crossings
        ]

    def _finding(self) -> str:
        if self.crossings:
            return "; ".join(_crossing_text(crossing) for crossing in self.crossings)
        where = f"at {_side(self.low_pixels)} px" if self.sizes == 1 else "at every size"
        if not self.faster:
            return f"no clear difference {where} (latency ratio {self._ratio_text(self.model_a)})"
        ratio = self._ratio_text(self.faster)
        if self.level_pixels:
            sides = ", ".join(_side(n) for n in self.level_pixels)
            return f"{self.faster} is faster where they differ ({ratio}); no clear difference at {sides} px"
        throughout = "wherever that is certain" if self.sizes_without_interval else "throughout"
        return f"{self.faster} is faster {where if self.sizes == 1 else throughout} ({ratio})"

    def _ratio_text(self, faster: str) -> str:
        if self.ratio_low is None or self.ratio_high is None:
            return "unknown"
        low, high = self.ratio_low, self.ratio_high
        if faster == self.model_b:
            low, high = 1 / high, 1 / low
        return f"{low:.2f}×" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}×"


def _crossing_text(crossing: Crossing) -> str:
    above, below = crossing.faster_above, crossing.faster_below
    if crossing.unclear:
        span = f"{_side(crossing.low_pixels)} and {_side(crossing.high_pixels)} px"
        return f"{below} is faster at first, {above} later; unclear where between {span}"
    return f"{above} is faster above {_side(crossing.pixels)} px, {below} below"


def _side(pixels: float | None) -> str:
    return "?" if pixels is None else f"{math.sqrt(pixels):.0f}"


def find_crossovers(records: Sequence[Record]) -> list[Crossover]:
    """Return every pair of models of one block of records that share their conditions."""
    if not records:
        return []
    conditions = Conditions.of(records[0].cell)
    curves = {model: _curve(group) for model, group in by_model(records).items()}
    return [
        _compare(a, b, curves[a], curves[b], conditions)
        for a, b in itertools.combinations(curves, 2)
        if curves[a] and curves[b]
    ]


@dataclass(frozen=True)
class _Point:
    """Logarithms of pixels, latency and its bounds; ``known`` is False where no interval was measured."""

    x: float
    y: float
    low: float
    high: float
    known: bool


def _curve(group: Sequence[Record]) -> list[_Point]:
    points: dict[int, list[_Point]] = {}
    for record in group:
        latency = record.measurements.get("latency_s")
        if record.status != "ok" or latency is None or latency.value <= 0:
            continue
        low, high = latency.ci_low, latency.ci_high
        known = low is not None and high is not None and low > 0
        bounds = (low, high) if low is not None and high is not None and low > 0 else (latency.value, latency.value)
        pixels = record.cell.resolution.pixels
        y, y_low, y_high = (math.log(v) for v in (latency.value, *bounds))
        points.setdefault(pixels, []).append(_Point(math.log(pixels), y, y_low, y_high, known))
    # 512x768 and 768x512 are one size: their mean in log stands for both.
    return [_mean(points[pixels]) for pixels in sorted(points)]


def _mean(points: Sequence[_Point]) -> _Point:
    x, y, low, high = (
        math.fsum(column) / len(points) for column in zip(*((p.x, p.y, p.low, p.high) for p in points), strict=True)
    )
    return _Point(x, y, low, high, all(p.known for p in points))


def _at(curve: Sequence[_Point], x: float) -> _Point:
    xs = [p.x for p in curve]
    right = bisect.bisect_left(xs, x)
    if xs[right] == x:
        return curve[right]
    a, b = curve[right - 1], curve[right]
    t = (x - a.x) / (b.x - a.x)
    y, low, high = (a.y + t * (b.y - a.y), a.low + t * (b.low - a.low), a.high + t * (b.high - a.high))
    return _Point(x, y, low, high, a.known and b.known)


@dataclass(frozen=True)
class _Gap:
    """log(latency_b / latency_a) at one size: ``sign`` 1 where a is faster, −1 for b, 0 if level; sure if ``known``."""

    x: float
    value: float
    sign: int
    known: bool


def _gap(a: _Point, b: _Point) -> _Gap:
    sign = 1 if a.high < b.low else -1 if b.high < a.low else 0
    return _Gap(a.x, b.y - a.y, sign, a.known and b.known)


def _compare(name_a: str, name_b: str, a: Sequence[_Point], b: Sequence[_Point], conditions: Conditions) -> Crossover:
    first, last = max(a[0].x, b[0].x), min(a[-1].x, b[-1].x)
    xs = sorted({p.x for p in (*a, *b) if first <= p.x <= last})
    if not xs:
        return Crossover(model_a=name_a, model_b=name_b, conditions=conditions)
    gaps = [_gap(_at(a, x), _at(b, x)) for x in xs]
    names = {1: name_a, -1: name_b}
    known = [i for i, gap in enumerate(gaps) if gap.sign]
    crossings = []
    for i, j in itertools.pairwise(known):
        if gaps[i].sign == gaps[j].sign:
            continue
        crossings.append(
            Crossing(
                pixels=math.exp(_root(gaps[i : j + 1])),
                low_pixels=_pixels(gaps[i].x),
                high_pixels=_pixels(gaps[j].x),
                faster_below=names[gaps[i].sign],
                faster_above=names[gaps[j].sign],
                unclear=j > i + 1 or not (gaps[i].known and gaps[j].known),
            )
        )
    certain = [gap for gap in gaps if gap.sign and gap.known]
    signs = {gap.sign for gap in certain}
    ratios = [math.exp(gap.value) for gap in certain or gaps]
    return Crossover(
        model_a=name_a,
        model_b=name_b,
        conditions=conditions,
        crossings=tuple(crossings),
        faster=names[signs.pop()] if len(signs) == 1 else "",
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        level_pixels=tuple(_pixels(gap.x) for gap in gaps if gap.known and not gap.sign),
        sizes=len(xs),
        sizes_without_interval=sum(not gap.known for gap in gaps),
        low_pixels=_pixels(xs[0]),
        high_pixels=_pixels(xs[-1]),
    )


def _root(gaps: Sequence[_Gap]) -> float:
    """Return where the gap passes zero; the middle one where noise makes it pass several times."""
    roots = [
        p.x + (q.x - p.x) * p.value / (p.value - q.value)
        for p, q in itertools.pairwise(gaps)
        if p.value != q.value and p.value * q.value <= 0
    ]
    return roots[len(roots) // 2]


def _pixels(x: float) -> float:
    return float(round(math.exp(x)))


#: Columns of crossovers.csv.
CROSSOVER_COLUMNS = tuple(
    Crossover(model_a="", model_b="", conditions=Conditions.of(Cell(model="", height=1, width=1))).rows()[0]
)
