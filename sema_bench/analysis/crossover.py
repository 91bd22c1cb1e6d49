"""Find the resolution from which one model is faster than another, as far as intervals show it.

Two latency curves are compared at every measured size within the range of both. A curve without that size is
interpolated along a straight line in log-log; nothing is extrapolated. At each size the faster model is *known* if both
latencies have 95 % intervals and these do not overlap (stricter than a test of the difference at 95 %). A crossing is
a change of the known faster model, so neither noise nor a size without interval creates one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sema_bench.analysis.conditions import Conditions, by_model, varying_fields
from sema_bench.spec.cell import Cell
from sema_bench.spec.record import Record
from sema_bench.spec.units import listed

#: Conditions that change how the same work is done.
_HOW = ("dtype", "layout", "mode", "threads")


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A change of the faster model at ``pixels``, a guess if ``unclear``: no model is known faster in between."""

    pixels: float
    low_pixels: float
    high_pixels: float
    faster_below: str
    faster_above: str
    unclear: bool

    @property
    def where(self) -> str:
        """``from 512 px (the curves cross near 437)``: a measured size, and a guess."""
        low, high = _side(self.low_pixels), _side(self.high_pixels)
        crossing = (
            f"unclear where between {low} and {high}" if self.unclear else f"the curves cross near {_side(self.pixels)}"
        )
        return f"from {high} px ({crossing})"

    @property
    def statement(self) -> str:
        return f"{self.faster_below} is faster up to {_side(self.low_pixels)} px, {self.faster_above} {self.where}"


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Two models under the same conditions, compared at ``sizes`` sizes between ``low_pixels`` and ``high_pixels``.

    Attributes:
        faster: the model that is faster at all sizes that differ; "" if that changes or none differs.
        ratio_low, ratio_high: range of latency_b / latency_a over the sizes that differ, or else over all.
        level_pixels, bare_pixels: sizes with overlapping intervals, and those at which a latency has no interval.
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
        """One sentence: ``a is faster up to 384 px, b from 512 px (the curves cross near 437)``."""
        if self.sizes == 0:
            return "no common size was measured"
        if self.crossings:
            return "; ".join(crossing.statement for crossing in self.crossings) + self._caveat
        one = f"at {_side(self.low_pixels)} px" if self.sizes == 1 else ""
        ratio = self._ratio_text(self.faster)
        if not self.faster:
            return f"no clear difference {one or 'at every size'} (latency ratio {ratio}){self._caveat}"
        if self.level_pixels:
            level = listed([_side(pixels) for pixels in self.level_pixels])
            return (
                f"{self.faster} is faster where they differ ({ratio}); no clear difference at {level} px{self._caveat}"
            )
        throughout = one or ("wherever intervals show it" if self.bare_pixels else "throughout")
        return f"{self.faster} is faster {throughout} ({ratio}){self._caveat}"

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per crossing, or a single row if there is none."""
        none: dict[str, Any] = dict.fromkeys(("pixels", "low_pixels", "high_pixels", "unclear"))
        none |= {"faster_below": self.faster, "faster_above": self.faster}
        return [
            {
                "model_a": self.model_a,
                "model_b": self.model_b,
                **self.conditions.as_dict(),
                **{f"crossing_{name}": row[name] for name in ("pixels", "low_pixels", "high_pixels")},
                **{name: row[name] for name in ("unclear", "faster_below", "faster_above")},
                "sizes": self.sizes,
                "sizes_without_interval": len(self.bare_pixels),
                "low_pixels": self.low_pixels,
                "high_pixels": self.high_pixels,
                "latency_ratio_low": self.ratio_low,
                "latency_ratio_high": self.ratio_high,
                "statement": self.statement,
            }
            for row in list(map(asdict, self.crossings)) or [none]
        ]

    @property
    def _caveat(self) -> str:
        return f"; {len(self.bare_pixels)} of {self.sizes} sizes without interval" if self.bare_pixels else ""

    def _ratio_text(self, faster: str) -> str:
        low, high = self.ratio_low or math.nan, self.ratio_high or math.nan
        if faster == self.model_b:
            low, high = 1 / high, 1 / low
        return f"{low:.2f}×" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}×"


def _side(pixels: float | None) -> str:
    return "?" if pixels is None else f"{math.sqrt(pixels):.0f}"


def find_crossovers(records: Sequence[Record]) -> list[Crossover]:
    """Compare every pair of models; the records share their conditions."""
    curves = {model: curve for model, group in by_model(records).items() if len(curve := _curve(group))}
    return [_compare(a, b, curves[a], curves[b], Conditions.of(records[0].cell)) for a, b in combinations(curves, 2)]


def compare_conditions(groups: Mapping[Conditions, Sequence[Record]]) -> Iterator[tuple[str, list[str]]]:
    """Compare the latencies of each model under the first conditions and under others that differ in one of ``_HOW``.

    Yield ``compile against eager``, and a sentence for each model.
    """
    for conditions, group in list(groups.items())[1:]:
        first = next(iter(groups))
        varying = varying_fields((first, conditions))
        if len(varying) != 1 or varying[0] not in _HOW or conditions.batch_is_found:
            continue
        base, other = (of.text_of(varying) for of in (first, conditions))
        before, after = by_model(groups[first]), by_model(group)
        curves = {model: (_curve(before[model]), _curve(after[model])) for model in before if model in after}
        pairs = {m: _compare(base, other, *pair, conditions) for m, pair in curves.items() if all(map(len, pair))}
        if pairs:
            yield f"{other} against {base}", [f"{model}: {pair.statement}" for model, pair in pairs.items()]


#: Rows of (log pixels, log latency, its log bounds, 1 if an interval is missing and else 0), smallest size first.
_Curve = NDArray[np.float64]


def _curve(group: Sequence[Record]) -> _Curve:
    points: dict[int, list[tuple[float, ...]]] = {}
    for record in group:
        latency = record.result("latency_s")
        if latency is None or latency.value <= 0:
            continue
        low, high, bare = latency.ci_low, latency.ci_high, False
        if low is None or high is None or low <= 0:
            low, high, bare = latency.value, latency.value, True
        pixels = record.cell.resolution.pixels
        points.setdefault(pixels, []).append((*map(math.log, (pixels, latency.value, low, high)), bare))
    # 512x768 and 768x512 are one size: their mean in log stands for both.
    return np.array([np.mean(points[pixels], axis=0) for pixels in sorted(points)])


class _Gap(NamedTuple):
    """log(latency_b / latency_a) at one size; ``sign`` is 1 if a is known to be faster, −1 for b, else 0."""

    x: float
    value: float
    sign: int
    bare: bool


def _gap(a: _Curve, b: _Curve, x: float) -> _Gap:
    (y_a, low_a, high_a, bare_a), (y_b, low_b, high_b, bare_b) = (
        [float(np.interp(x, curve[:, 0], column)) for column in curve.T[1:]] for curve in (a, b)
    )
    bare = bare_a + bare_b > 0
    return _Gap(x, y_b - y_a, 0 if bare else (high_a < low_b) - (high_b < low_a), bare)


def _compare(name_a: str, name_b: str, a: _Curve, b: _Curve, conditions: Conditions) -> Crossover:
    first, last = max(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0])
    gaps = [_gap(a, b, float(x)) for x in np.union1d(a[:, 0], b[:, 0]) if first <= x <= last]
    if not gaps:
        return Crossover(model_a=name_a, model_b=name_b, conditions=conditions)
    names = {1: name_a, -1: name_b}
    known = [i for i, gap in enumerate(gaps) if gap.sign]
    faster = {names[gaps[i].sign] for i in known}
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
            for i, j in pairwise(known)
            if gaps[i].sign != gaps[j].sign
        ),
        faster=faster.pop() if len(faster) == 1 else "",
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        level_pixels=tuple(_pixels(gap.x) for gap in gaps if not gap.bare and not gap.sign),
        bare_pixels=tuple(_pixels(gap.x) for gap in gaps if gap.bare),
        sizes=len(gaps),
        low_pixels=_pixels(gaps[0].x),
        high_pixels=_pixels(gaps[-1].x),
    )


def _root(gaps: Sequence[_Gap]) -> float:
    """Return the zero of the gap, or the middle one if noise causes several."""
    roots = [
        p.x + (q.x - p.x) * p.value / (p.value - q.value)
        for p, q in pairwise(gaps)
        if p.value != q.value and p.value * q.value <= 0
    ]
    return roots[len(roots) // 2]


def _pixels(x: float) -> float:
    return float(round(math.exp(x)))


#: Columns of crossovers.csv.
CROSSOVER_COLUMNS = tuple(
    Crossover(model_a="", model_b="", conditions=Conditions.of(Cell(model="", height=1, width=1))).rows()[0]
)
