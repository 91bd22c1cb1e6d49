"""Plot each metric against resolution, log-log, as SVG and PNG.

A size without a result is an × on a dotted continuation of the line; its height is extrapolated. A hollow marker is a
disturbed cell, or one without interval. A line that others cover is wider than they are. A small key shows the slopes
of linear and quadratic growth in the number of pixels N. Models that grow alike overlap, so a second figure shows
latency as a multiple of a reference model.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sema_bench.analysis.conditions import by_conditions, by_model, resolutions_of, varying_fields
from sema_bench.analysis.ratios import interval_of_ratio
from sema_bench.report.accuracy_plot import accuracy_figure
from sema_bench.report.figure_style import (
    GREY,
    SMALL_PT,
    WIDTH_IN,
    dress,
    label_ends,
    log_log_figure,
    log_ticks,
    set_ticks,
    write_figure,
    write_title,
)
from sema_bench.report.line_styles import head_of, line_styles
from sema_bench.report.roofline_plot import draw_roofline
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import FROM_WEIGHTS
from sema_bench.spec.record import Measurement, Record
from sema_bench.spec.resolution import Resolution
from sema_bench.store.files import check_own_folder
from sema_bench.store.table import stayed_disturbed


@dataclass(frozen=True)
class _Topic:
    """A figure: file stem, title, axis label, and the sign of growth (−1 if values fall).

    Attributes:
        guides: True if slopes have a meaning; for memory they do not, as it starts from the weights.
        window: how far from 1 the axis goes at most, as a factor; 0 shows all values.
    """

    stem: str
    title: str
    axis: str
    growth: int
    guides: bool = True
    window: float = 0.0


_TOPICS: Mapping[str, _Topic] = {
    "latency_s": _Topic("latency", "Latency (median, 95 % interval)", "latency", 1),
    "throughput_images_per_s": _Topic("throughput", "Throughput (batch / median latency)", "throughput", -1),
    "peak_memory_bytes": _Topic("peak_memory", "Peak memory", "peak memory", 1, guides=False),
    "predicted_peak_bytes": _Topic("predicted_memory", "Peak memory, predicted", "peak memory", 1, guides=False),
    "macs": _Topic("macs", "Multiply-accumulates of one image", "multiply-accumulates", 1),
}
_RATIO = _Topic("latency_ratio", "Latency relative to {}", "latency / that of {}", 1, guides=False, window=3.0)

#: Metrics that are comparable across batches.
_COMPARE_AT_ANY_BATCH = ("throughput_images_per_s", "macs")
#: Metrics that have an interval if there were enough samples.
_TIMED = ("latency_s", "throughput_images_per_s", "relative_latency")
#: Distance of lines that cover each other, as a share of the axes' height; each makes the ones below this much wider.
_COVERED, _WIDER_PT = 0.004, 1.4
_NOTE_CHARACTERS = 120
#: Least height of the key of slopes, as a share of the axes, and points along a segment of a curve.
_KEY_HEIGHT, _STEPS = 0.11, 20


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every measured metric into ``folder``, remove figures of an earlier state of the run, and return the files.

    Figures of different conditions differ in their suffix (``latency--b32-bfloat16.svg``). A file that cannot be
    written, or a ``folder`` that is a link, raises StoreError.
    """
    check_own_folder(folder)
    blocks = by_conditions(records)
    varying = varying_fields(blocks)
    models = list(by_model(records))  # over the whole run, so that a model looks the same in every figure
    written: list[Path] = []

    def write(figure: Figure | None, stem: str, *words: str) -> None:
        if figure is not None:
            suffix = "-".join(filter(None, words))
            written.extend(write_figure(figure, folder, f"{stem}--{suffix}" if suffix else stem))

    for conditions, group in blocks.items():
        slug = conditions.slug(varying)
        for metric, topic in _TOPICS.items():
            if metric == "predicted_peak_bytes" and any(r.result("peak_memory_bytes") for r in group):
                continue  # the measured peak is better
            if conditions.batch_is_found and metric not in _COMPARE_AT_ANY_BATCH:
                continue
            write(draw(metric, group, models=models), topic.stem, slug)
        if not conditions.batch_is_found:
            write(draw_ratios(group, models=models), _RATIO.stem, slug)
        write(draw_roofline(group, models=models), "roofline", slug)
        for head in dict.fromkeys(head_of(model) for model in by_model(group)):
            of_head = [record for record in group if head_of(record.cell.model) == head]
            write(accuracy_figure(of_head, models, head), "accuracy", slug, head)
    stems = {"roofline", "accuracy", _RATIO.stem, *(topic.stem for topic in _TOPICS.values())}
    for path in folder.glob("*.*"):
        if path.stem.partition("--")[0] in stems and path.suffix in (".svg", ".png") and path not in written:
            with contextlib.suppress(OSError):
                path.unlink()
    return written


def draw(metric: str, group: Sequence[Record], *, models: Sequence[str]) -> Figure | None:
    """Plot one metric of records that share their conditions, with the looks of all ``models`` of the run."""
    return _draw(_TOPICS[metric], metric, group, models)


def draw_ratios(group: Sequence[Record], *, models: Sequence[str]) -> Figure | None:
    """Plot latency as a multiple of that of the first model with the most sizes; None if no size has both.

    If that model is far from all others, the one with the most results of others nearby takes its place. If no model
    has any nearby, the axis shows all ratios.
    """
    curves = by_model(group)
    timed = {model: {r.cell.resolution: m for r in c if (m := r.result("latency_s"))} for model, c in curves.items()}

    def near(model: str) -> int:
        """Count the results of other models within the axis."""
        return sum(
            1 / _RATIO.window <= m.value / timed[model][size].value <= _RATIO.window
            for other, sizes in timed.items()
            if other != model
            for size, m in sizes.items()
            if size in timed[model] and timed[model][size].value > 0
        )

    reference = max(timed, key=lambda model: len(timed[model]))
    if not near(reference) and near(other := max(timed, key=near)):
        reference = other
    base = timed[reference]
    if not any(base.keys() & sizes.keys() for model, sizes in timed.items() if model != reference):
        return None
    ratios = [_against(base.get(record.cell.resolution), record, record.cell.model == reference) for record in group]
    topic = replace(
        _RATIO,
        title=_RATIO.title.format(reference),
        axis=_RATIO.axis.format(reference),
        window=_RATIO.window if near(reference) else math.inf,
    )
    reference_curve = _Curve(curves[reference], "latency_s", fmt.Unit("", 1.0), line_styles(models)[reference])
    return _draw(topic, "relative_latency", ratios, models, reference_curve)


def _against(base: Measurement | None, record: Record, is_reference: bool) -> Record:
    """Return ``record`` with a relative latency in units of ``base``."""
    others = {name: m for name, m in record.measurements.items() if name != "relative_latency"}
    if (latency := record.result("latency_s")) and base and base.value > 0:
        low, high = (1.0, 1.0) if is_reference else interval_of_ratio(latency, base)
        ratio = latency.value / base.value
        others["relative_latency"] = Measurement(metric="relative_latency", value=ratio, ci_low=low, ci_high=high)
    return replace(record, measurements=others)


def _draw(
    topic: _Topic, metric: str, group: Sequence[Record], models: Sequence[str], reference: _Curve | None = None
) -> Figure | None:
    values = [result.value for r in group if (result := r.result(metric)) is not None and result.value > 0]
    if not values:
        return None
    unit = fmt.Unit("", 1.0) if topic.window else fmt.unit_for(metric, values)
    styles = line_styles(models)
    curves = [
        _Curve(records, metric, unit, styles[model], growth=topic.growth, reference=reference)
        for model, records in by_model(group).items()
    ]
    drawn = [curve for curve in curves if curve.points]
    figure, axes = log_log_figure(lines=len(drawn))
    _set_axes(axes, drawn, resolutions_of(group), window=topic.window)
    dress(axes, "resolution (pixels a side)", f"{topic.axis} ({unit.symbol})" if unit.symbol else topic.axis)
    low, high = axes.get_ylim()
    near = _COVERED * math.log(high / low)
    covering = [sum(curve.is_covered_by(later, near) for later in drawn[i:]) for i, curve in enumerate(drawn, start=1)]
    for curve, count in zip(drawn, covering, strict=True):
        curve.draw(axes, wider_pt=_WIDER_PT * min(count, 3))
    if topic.guides:
        _draw_slopes(axes, drawn, topic.growth)
    if topic.window:
        axes.axhline(1.0, color=GREY, linewidth=0.9, zorder=1)
    ends = [(_label(curve, ratio=bool(topic.window)), curve.seen_end(axes.get_ylim()), curve.colour) for curve in drawn]
    label_ends(axes, ends)
    _write_captions(figure, axes, topic, group, curves, covered=any(covering))
    return figure


class _Curve:
    """One model's line in drawing units: side of the equal square, shown unit.

    ``crosses`` are failures at extrapolated heights: those between two results, and the first beyond them.
    Values are multiples of those of a ``reference``, if there is one.
    """

    def __init__(
        self,
        records: Sequence[Record],
        metric: str,
        unit: fmt.Unit,
        style: Mapping[str, Any],
        *,
        growth: int = 1,
        reference: _Curve | None = None,
    ) -> None:
        self.model = records[0].cell.model
        self.style, self.colour = style, str(style["color"])
        self.points: list[tuple[float, float]] = []
        self.bars: list[tuple[float, float, float]] = []
        self.hollow: list[tuple[float, float]] = []
        self.failures: list[tuple[float, Record]] = []
        self.crosses: list[tuple[float, float]] = []
        self._growth, self._reference = growth, reference
        self._from_weights = metric in FROM_WEIGHTS
        for record in records:
            x = math.sqrt(record.cell.resolution.pixels)
            m = record.result(metric)
            if m is None and record.status != "ok":
                self.failures.append((x, record))
            elif m is not None and m.value > 0:
                self.points.append((x, m.value / unit.factor))
                if m.ci_low is not None and m.ci_high is not None and m.ci_low > 0:
                    self.bars.append((x, m.ci_low / unit.factor, m.ci_high / unit.factor))
                if metric in _TIMED and (m.ci_low is None or stayed_disturbed(record)):
                    self.hollow.append(self.points[-1])
        if not self.points:
            return
        first, last = self.points[0][0], self.points[-1][0]
        beyond = [(x, record) for x, record in self.failures if x > last][:1]
        drawn = [x for x, _ in self.failures if first < x < last] + [x for x, _ in beyond]
        self.crosses = [(x, self._at(x)) for x in drawn]
        self.end = self.crosses[-1] if beyond else self.points[-1]

    def is_covered_by(self, other: _Curve, near: float) -> bool:
        """Check whether half of the points shared with ``other`` are within ``near`` of it, in logarithms."""
        heights = dict(other.points)
        apart = [abs(math.log(y / heights[x])) for x, y in self.points if x in heights]
        return bool(apart) and statistics.median(apart) <= near

    def draw(self, axes: Axes, *, wider_pt: float = 0.0) -> None:
        line = sorted([*self.points, *((x, math.nan) for x, _ in self.failures)])  # a failure interrupts it
        style = {**self.style, **{name: self.style[name] + wider_pt for name in ("linewidth", "markersize")}}
        axes.plot(*zip(*line, strict=True), **style)
        if self.bars:
            xs, lows, highs = zip(*self.bars, strict=True)
            axes.fill_between(xs, lows, highs, color=self.colour, alpha=0.18, linewidth=0, zorder=2)
            axes.vlines(xs, lows, highs, color=self.colour, linewidth=1.0, zorder=3)
        if self.hollow:
            look = {"marker": style["marker"], "markersize": style["markersize"], "linestyle": "none"}
            axes.plot(*zip(*self.hollow, strict=True), **look, color="white", markeredgecolor=self.colour, zorder=4)
        for x, y in self.crosses:
            left = max(p for p in self.points if p[0] < x)
            right = min((p for p in self.points if p[0] > x), default=(x, y))
            dotted: dict[str, Any] = {"color": self.colour, "linewidth": 1.0, "linestyle": (0, (1, 1.6)), "zorder": 2}
            axes.plot(*zip(left, right, strict=True), **dotted)
            axes.plot([x], [y], marker="x", markersize=6, markeredgewidth=1.6, color=self.colour, zorder=5)

    def seen_end(self, limits: tuple[float, float]) -> tuple[float, float]:
        """Return the end of the line, or where it leaves the axes before that."""
        low, high = limits
        line = [*self.points, self.end]
        if low <= self.end[1] <= high or not any(low <= y <= high for _, y in line):
            return self.end
        inside = max(i for i, (_, y) in enumerate(line) if low <= y <= high)
        (x0, y0), (x1, y1) = line[inside], line[inside + 1]
        edge = high if y1 > high else low
        return x0 * math.exp(math.log(x1 / x0) * math.log(edge / y0) / math.log(y1 / y0)), edge

    def _at(self, x: float) -> float:
        """Return the height at ``x`` on the line through its neighbours, or through the last two points.

        The line is straight in logarithms, or, for memory, in the number of pixels.
        """
        index = next((i for i, p in enumerate(self.points) if p[0] > x), len(self.points) - 1)
        (x1, y1), (x0, y0) = ((p, y * self._unit_at(p)) for p, y in (self.points[index], self.points[index - 1]))
        if self._from_weights and x1 > x0 and y1 >= y0:
            return y0 + (y1 - y0) * (x**2 - x0**2) / (x1**2 - x0**2)
        # one point only: assume linear in N
        slope = math.log(y1 / y0) / math.log(x1 / x0) if x1 > x0 else 2 * self._growth
        return y0 * math.exp(slope * math.log(x / x0)) / self._unit_at(x)

    def _unit_at(self, x: float) -> float:
        """Return the value that 1 stands for at ``x``: the reference's value, measured or extrapolated."""
        curve = self._reference
        return 1.0 if curve is None else dict(curve.points).get(x) or curve._at(x)


def _set_axes(axes: Axes, curves: Sequence[_Curve], resolutions: Sequence[Resolution], *, window: float) -> None:
    sides = [math.sqrt(r.pixels) for r in resolutions]
    pad = max(0.03 * math.log(sides[-1] / sides[0]), 0.03)
    axes.set_xlim(sides[0] * math.exp(-pad), sides[-1] * math.exp(pad))
    heights = [y for curve in curves for _, y in (*curve.points, *curve.crosses)]
    heights += [y for curve in curves for _, low, high in curve.bars for y in (low, high)]
    if window:  # a model far from the reference would squeeze the others together
        heights = [y for y in heights if 1 / window <= y <= window]
    low, high = min(heights), max(heights)
    pad = max(0.06 * math.log(high / low), 0.08)
    axes.set_ylim(low * math.exp(-pad), high * math.exp(pad))
    shown = _spaced(sides, [r.label for r in resolutions], axes.get_xlim())
    set_ticks(axes.xaxis, sides, [r.label if i in shown else "" for i, r in enumerate(resolutions)])
    set_ticks(axes.yaxis, log_ticks(*axes.get_ylim()))


def _spaced(sides: Sequence[float], labels: Sequence[str], limits: tuple[float, float]) -> set[int]:
    """Choose labels that fit side by side: always the last, then the first, then those between."""
    inches = WIDTH_IN * 0.86 / math.log(limits[1] / limits[0])
    centres = [inches * math.log(side) for side in sides]
    halves = [len(label) * SMALL_PT * 0.33 / 72 + 0.04 for label in labels]
    chosen = [len(sides) - 1]
    for index in reversed(range(len(sides) - 1)):
        fits = centres[index] + halves[index] <= centres[chosen[-1]] - halves[chosen[-1]]
        clears_first = index == 0 or centres[0] + halves[0] <= centres[index] - halves[index]
        if fits and clears_first:
            chosen.append(index)
    return set(chosen)


def _draw_slopes(axes: Axes, curves: Sequence[_Curve], growth: int) -> None:
    """Draw a key of the slopes of tokens and tokens² where it is farthest from the curves."""
    (left, right), (bottom, top) = (np.log(limits) for limits in (axes.get_xlim(), axes.get_ylim()))
    sides = [x for curve in curves for x, _ in curve.points]
    if len(set(sides)) < 3 or max(sides) < 1.5 * min(sides):
        return
    aspect = (right - left) / (top - bottom)  # a slope of 1 in shares of the axes
    width = min(max(0.1, _KEY_HEIGHT / (4 * aspect)), 2 * _KEY_HEIGHT / (4 * aspect), 0.3)
    height = 4 * width * aspect
    drawn = np.concatenate([_dense(curve) for curve in curves])
    x, y = (drawn[:, 0] - left) / (right - left), (drawn[:, 1] - bottom) / (top - bottom)
    across, up = np.meshgrid(np.arange(0.02, 0.9 - width, 0.02), np.arange(0.03, 0.97 - height, 0.02))
    beside = np.maximum(across[..., None] - x, x - across[..., None] - width - 0.13)  # with room for the labels
    over = np.maximum(up[..., None] - y, y - up[..., None] - height)
    best = np.unravel_index(np.argmax(np.maximum(beside, over).min(axis=-1)), across.shape)
    x0, y0 = float(across[best]), float(up[best]) + (0 if growth > 0 else height)
    for power, name in ((1, "tokens"), (2, "tokens²")):
        end = (x0 + width, y0 + growth * height * power / 2)
        axes.plot([x0, end[0]], [y0, end[1]], transform=axes.transAxes, color=GREY, linewidth=0.9, zorder=1)
        label = f"∝ {name}" if growth > 0 else f"∝ 1/{name}"
        look: dict[str, Any] = {"transform": axes.transAxes, "fontsize": SMALL_PT, "color": GREY, "zorder": 1}
        axes.text(end[0] + 0.008, end[1], label, ha="left", va="center", **look)


def _dense(curve: _Curve) -> NDArray[np.float64]:
    """Return points along the line and intervals of a curve, in logarithms."""
    line = np.log([*curve.points, curve.end])
    steps = np.linspace(0, 1, _STEPS)[:, None]
    parts = [a + steps * (b - a) for a, b in itertools.pairwise(line)]
    ends = [np.log([(x, low), (x, high)]) for x, low, high in curve.bars]
    return np.concatenate([line, *parts, *ends])


def _label(curve: _Curve, *, ratio: bool) -> str:
    value = curve.points[-1][1]
    ratio_text = f"{value:.2f}" if 0.1 <= value < 100 else fmt.number(value)
    return f"{curve.model} {ratio_text}×" if ratio else curve.model


def _write_captions(
    figure: Figure, axes: Axes, topic: _Topic, group: Sequence[Record], curves: Sequence[_Curve], *, covered: bool
) -> None:
    write_title(axes, topic.title, group)
    notes = []
    if any(curve.hollow for curve in curves):
        notes.append("hollow marker: disturbed in most sample windows, or too few samples for an interval")
    if covered:
        notes.append("wide line: thinner ones lie on it")
    if topic.window:
        cut = any(not 1 / topic.window <= y <= topic.window for curve in curves for _, y in curve.points)
        stops = f"; the axis stops at a factor of {topic.window:g}" if cut else ""
        notes.append(f"after a name: its ratio at the largest size measured{stops}")
    low, high = axes.get_ylim()
    if any(low <= y <= high for curve in curves for _, y in curve.crosses):
        notes.append("× no result at this size; its height is extrapolated, not measured")
    for curve in curves:
        if curve.failures:
            runs = itertools.groupby((record for _, record in curve.failures), lambda record: record.status)
            parts = [f"{', '.join(r.cell.resolution.label for r in run)} ({status})" for status, run in runs]
            notes.append(f"no result: {curve.model} at {'; '.join(parts)}")
    look: dict[str, Any] = {"fontsize": SMALL_PT, "color": "#555555", "ha": "left", "va": "top", "parse_math": False}
    for number, line in enumerate(line for note in notes for line in textwrap.wrap(note, _NOTE_CHARACTERS)):
        figure.text(0.11, 0.035 - number * SMALL_PT * 1.35 / 72 / figure.get_figheight(), line, **look)
