"""Find the resolution from which one model is faster than another, as far as intervals show it.

Two latency curves are compared at every measured size within the range of both. A curve without that size is
interpolated along a straight line in log-log; nothing is extrapolated. At each size the faster model is *known* if both
latencies have 95 % intervals and these do not overlap (stricter than a test of the difference at 95 %). A crossing is
a change of the known faster model, so neither noise nor a size without interval makes one.
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
    """A change of the faster model, interpolated on log-log lines between ``low`` and ``high``.

    Attributes:
        pixels: H · W with equal times.
        low_pixels, high_pixels: nearest sizes around it with a known faster model.
        faster_below, faster_above: model names.
        unclear: at sizes in between the faster model is not known: ``pixels`` is then a guess.
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

    @property
    def where(self) -> str:
        """``above 437 px``, or ``between 384 and 512 px``."""
        if self.unclear:
            return f"between {_side(self.low_pixels)} and {_side(self.high_pixels)} px"
        return f"above {_side(self.pixels)} px"


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Two models under the same conditions.

    Attributes:
        crossings: smallest first; empty if one model is always faster, or none ever is.
        faster: the model that is faster at all sizes that differ; "" if that changes or none differs.
        ratio_low, ratio_high: range of latency_b / latency_a over the sizes that differ, or over all common sizes if
            none differs; None without common sizes.
        level_pixels: sizes with overlapping intervals.
        bare_pixels: sizes at which a latency has no interval.
        sizes: how many sizes were compared.
        low_pixels, high_pixels: the compared range.
    """

    model_a: str
    model_b: str
    conditions: Conditions
    crossings: tuple[Crossing, ...] = ()
    faster: str = ""
    ratio_low: float | None = None
    ratio_high: float | None = None
    level_pixels: tuple[float, ...] = ()
    bare_pixels: tuple[float, ...] = ()
    sizes: int = 0
    low_pixels: float | None = None
    high_pixels: float | None = None

    @property
    def statement(self) -> str:
        """One sentence: ``b is faster above 437 px, a below``."""
        if self.sizes == 0:
            return "no common size was measured"
        if self.crossings:
            return "; ".join(_crossing_text(crossing) for crossing in self.crossings) + self._caveat
        one = f"at {_side(self.low_pixels)} px" if self.sizes == 1 else ""
        if not self.faster:
            where = one or "at every size"
            return f"no clear difference {where} (latency ratio {self._ratio_text(self.model_a)}){self._caveat}"
        ratio = self._ratio_text(self.faster)
        if self.level_pixels:
            caveat = f"; no clear difference at {_sides(self.level_pixels)} px{self._caveat}"
            return f"{self.faster} is faster where they differ ({ratio}){caveat}"
        throughout = one or ("wherever intervals show it" if self.bare_pixels else "throughout")
        return f"{self.faster} is faster {throughout} ({ratio}){self._caveat}"

    def rows(self) -> list[dict[str, str | int | float | bool | None]]:
        """Return one row per crossing, or one without a crossing."""
        return [
            {
                "model_a": self.model_a,
                "model_b": self.model_b,
                **self.conditions.as_dict(),
                "crossing_pixels": crossing.pixels if crossing else None,
                "crossing_low_pixels": crossing.low_pixels if crossing else None,
                "crossing_high_pixels": crossing.high_pixels if crossing else None,
                "unclear": crossing.unclear if crossing else None,
                "faster_below": crossing.faster_below if crossing else self.faster,
                "faster_above": crossing.faster_above if crossing else self.faster,
                "sizes": self.sizes,
                "sizes_without_interval": len(self.bare_pixels),
                "low_pixels": self.low_pixels,
                "high_pixels": self.high_pixels,
                "latency_ratio_low": self.ratio_low,
                "latency_ratio_high": self.ratio_high,
                "statement": self.statement,
            }
            for crossing in self.crossings or (None,)
        ]

    @property
    def _caveat(self) -> str:
        return f"; {len(self.bare_pixels)} of {self.sizes} sizes without interval" if self.bare_pixels else ""

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
        return f"{below} is faster at first, {above} later; unclear where {crossing.where}"
    return f"{above} is faster {crossing.where}, {below} below"


def _sides(pixels: Sequence[float]) -> str:
    return ", ".join(map(_side, pixels))


def _side(pixels: float | None) -> str:
    return "?" if pixels is None else f"{math.sqrt(pixels):.0f}"


def find_crossovers(records: Sequence[Record]) -> list[Crossover]:
    """Compare every pair of models of records that share their conditions."""
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
        latency = record.result("latency_s")
        if latency is None or latency.value <= 0:
            continue
        low, high = latency.ci_low, latency.ci_high
        known = low is not None and high is not None and low > 0
        pixels = record.cell.resolution.pixels
        y, y_low, y_high = (math.log(v if known and v else latency.value) for v in (latency.value, low, high))
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
    """log(latency_b / latency_a) at one size: ``sign`` is 1 if a is known to be faster, −1 for b, else 0.

    ``bare``: a latency has no interval.
    """

    x: float
    value: float
    sign: int
    bare: bool


def _gap(a: _Point, b: _Point) -> _Gap:
    bare = not (a.known and b.known)
    sign = 0 if bare else 1 if a.high < b.low else -1 if b.high < a.low else 0
    return _Gap(a.x, b.y - a.y, sign, bare)


def _compare(name_a: str, name_b: str, a: Sequence[_Point], b: Sequence[_Point], conditions: Conditions) -> Crossover:
    first, last = max(a[0].x, b[0].x), min(a[-1].x, b[-1].x)
    xs = sorted({p.x for p in (*a, *b) if first <= p.x <= last})
    if not xs:
        return Crossover(model_a=name_a, model_b=name_b, conditions=conditions)
    gaps = [_gap(_at(a, x), _at(b, x)) for x in xs]
    names = {1: name_a, -1: name_b}
    known = [i for i, gap in enumerate(gaps) if gap.sign]
    signs = {gaps[i].sign for i in known}
    ratios = [math.exp(gap.value) for gap in ([gaps[i] for i in known] or gaps)]
    return Crossover(
        model_a=name_a,
        model_b=name_b,
        conditions=conditions,
        crossings=tuple(
            Crossing(
                pixels=math.exp(_root(gaps[i : j + 1])),
                low_pixels=_pixels(gaps[i].x),
                high_pixels=_pixels(gaps[j].x),
                faster_below=names[gaps[i].sign],
                faster_above=names[gaps[j].sign],
                unclear=j > i + 1,
            )
            for i, j in itertools.pairwise(known)
            if gaps[i].sign != gaps[j].sign
        ),
        faster=names[signs.pop()] if len(signs) == 1 else "",
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        level_pixels=tuple(_pixels(gap.x) for gap in gaps if not gap.bare and not gap.sign),
        bare_pixels=tuple(_pixels(gap.x) for gap in gaps if gap.bare),
        sizes=len(xs),
        low_pixels=_pixels(xs[0]),
        high_pixels=_pixels(xs[-1]),
    )


def _root(gaps: Sequence[_Gap]) -> float:
    """Return the zero of the gap, or the middle one if noise makes several."""
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
