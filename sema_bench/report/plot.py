"""The results as figures: one metric against resolution per file, log-log, as SVG and PNG.

Every model is named at the end of its line; no legend to look up. A size that gave no result is an × with its
status, on a dotted continuation of the line: its height is extrapolated and says nothing. Grey guides show
what linear and quadratic growth in the number of pixels N look like.

"""

from __future__ import annotations

import contextlib
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FixedFormatter, FixedLocator

from sema_bench.analysis.conditions import by_conditions, by_model, resolutions_of, varying_fields
from sema_bench.report.accuracy_plot import accuracy_figure
from sema_bench.report.figure_style import (
    GREY,
    LABEL_PT,
    SMALL_PT,
    WIDTH_IN,
    dress,
    label_ends,
    log_log_figure,
    render,
    set_ticks,
    write_title,
)
from sema_bench.report.layout import log_ticks
from sema_bench.report.line_styles import head_of, line_styles
from sema_bench.report.roofline_plot import draw_roofline
from sema_bench.spec import units as fmt
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import Resolution
from sema_bench.store.files import check_own_folder, write_own


@dataclass(frozen=True)
class _Subject:
    """What one figure shows: file stem, title, axis label, and the sign of growth (−1 where more is less)."""

    stem: str
    title: str
    axis: str
    growth: int
    guides: bool = True


_SUBJECTS: Mapping[str, _Subject] = {
    "latency_s": _Subject("latency", "Latency (median, 95 % interval)", "latency", 1),
    "throughput_images_per_s": _Subject("throughput", "Throughput (batch / median latency)", "throughput", -1),
    "peak_memory_bytes": _Subject("peak_memory", "Peak memory", "peak memory", 1, guides=False),
    "predicted_peak_bytes": _Subject("predicted_memory", "Peak memory, predicted", "peak memory", 1, guides=False),
    "macs": _Subject("macs", "Multiply-accumulates of one image", "multiply-accumulates", 1),
}

#: What may be drawn over sizes of which each has a batch of its own.
_COMPARE_AT_ANY_BATCH = ("throughput_images_per_s", "macs")
_NOTE_CHARACTERS = 120


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw every metric that was measured into ``folder`` and return the files, SVG before PNG.

    One figure per metric and conditions: ``latency.svg`` where all records share their conditions,
    ``latency--b32-bfloat16.svg`` (the fields that differ) where they do not. Nothing measured, no file; figures of an
    earlier state of the run, whose fields did not differ yet, are removed.

    Raises:
        StoreError: a file cannot be written, or ``folder`` is a link.
    """
    check_own_folder(folder)
    blocks = by_conditions(records)
    varying = varying_fields(blocks)
    models = list(by_model(records))  # over the whole run, so that a model looks the same in every figure
    written: list[Path] = []
    for conditions, group in blocks.items():
        slug = conditions.slug(varying)
        for metric, subject in _SUBJECTS.items():
            if metric == "predicted_peak_bytes" and any(r.result("peak_memory_bytes") for r in group):
                continue  # what was measured says it better
            if conditions.batch_is_found and metric not in _COMPARE_AT_ANY_BATCH:
                continue
            written += _write(draw(metric, group, models=models), subject.stem, slug, folder)
        written += _write(draw_roofline(group, models=models), "roofline", slug, folder)
        for head in dict.fromkeys(head_of(model) for model in by_model(group)):
            figure = accuracy_figure([r for r in group if head_of(r.cell.model) == head], models, head)
            written += _write(figure, "accuracy", "-".join(word for word in (slug, head) if word), folder)
    stems = {"roofline", "accuracy", *(subject.stem for subject in _SUBJECTS.values())}
    for path in folder.glob("*.*"):
        if path.stem.partition("--")[0] in stems and path.suffix in (".svg", ".png") and path not in written:
            with contextlib.suppress(OSError):
                path.unlink()
    return written


def _write(figure: Figure | None, stem: str, slug: str, folder: Path) -> list[Path]:
    if figure is None:
        return []
    paths = [folder / f"{stem}{f'--{slug}' if slug else ''}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        write_own(path, render(figure, path.suffix[1:]))
    return paths


def draw(metric: str, group: Sequence[Record], *, models: Sequence[str]) -> Figure | None:
    """Return the figure of one metric over records that share their conditions, or None if none was measured.

    ``models`` are those of the whole run, so that each looks the same in all of its figures.
    """
    measured = [r for r in group if (result := r.result(metric)) is not None and result.value > 0]
    if not measured:
        return None
    subject = _SUBJECTS[metric]
    unit = fmt.unit_for(metric, (r.measurements[metric].value for r in measured))
    styles = line_styles(models)
    curves = [
        _Curve(model, styles[model], metric, unit, records, subject.growth)
        for model, records in by_model(group).items()
    ]
    drawn = [curve for curve in curves if curve.points]
    figure, axes = log_log_figure(lines=len(drawn))
    _set_axes(axes, drawn, resolutions_of(group), f"{subject.axis} ({unit.symbol})" if unit.symbol else subject.axis)
    for curve in drawn:
        curve.draw(axes)
    if subject.guides:  # memory starts from the weights, so no slope can be read off it
        _draw_guides(axes, drawn, subject.growth)
    label_ends(axes, [(_label(curve), curve.end, str(curve.style["color"])) for curve in drawn])
    _write_captions(figure, axes, subject, group, curves)
    return figure


class _Curve:
    """One model's line: points in drawing units (side of the equal square, shown unit) and where it failed."""

    def __init__(
        self,
        model: str,
        style: Mapping[str, Any],
        metric: str,
        unit: fmt.Unit,
        records: Sequence[Record],
        growth: int,
    ) -> None:
        self.model = model
        self.style = style
        self.colour = str(self.style["color"])
        self.points: list[tuple[float, float]] = []
        self.bars: list[tuple[float, float, float]] = []
        self.failures: list[tuple[float, Record]] = []
        self._growth = growth
        for record in records:
            x = math.sqrt(record.cell.resolution.pixels)
            m = record.result(metric)
            if m is None and record.status != "ok":
                self.failures.append((x, record))
            elif m is not None and m.value > 0:
                self.points.append((x, m.value / unit.factor))
                if m.ci_low is not None and m.ci_high is not None and m.ci_low > 0:
                    self.bars.append((x, m.ci_low / unit.factor, m.ci_high / unit.factor))

    @property
    def end(self) -> tuple[float, float]:
        return self.stop[0] if self.stop else self.points[-1]

    @property
    def stop(self) -> tuple[tuple[float, float], Record] | None:
        """The first failure beyond the last result, at an extrapolated height; later ones add nothing."""
        beyond = [(x, record) for x, record in self.failures if x > self.points[-1][0]]
        return ((beyond[0][0], self._at(beyond[0][0])), beyond[0][1]) if beyond else None

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Failures between two results."""
        first, last = self.points[0][0], self.points[-1][0]
        return [(x, self._at(x)) for x, _ in self.failures if first < x < last]

    def draw(self, axes: Axes) -> None:
        for run in self._runs():
            xs, ys = zip(*run, strict=True)
            axes.plot(xs, ys, **self.style)
        if self.bars:
            xs, lows, highs = zip(*self.bars, strict=True)
            axes.fill_between(xs, lows, highs, color=self.colour, alpha=0.18, linewidth=0, zorder=2)
            axes.vlines(xs, lows, highs, color=self.colour, linewidth=1.0, zorder=3)
        marks = [*self.gaps, *([self.stop[0]] if self.stop else [])]
        for x, y in marks:
            left = max(p for p in self.points if p[0] < x)
            right = min((p for p in self.points if p[0] > x), default=(x, y))
            dotted: dict[str, Any] = {"color": self.colour, "linewidth": 1.0, "linestyle": (0, (1, 1.6)), "zorder": 2}
            axes.plot(*zip(left, right, strict=True), **dotted)
            axes.plot([x], [y], marker="x", markersize=6, markeredgewidth=1.6, color=self.colour, zorder=5)

    def _runs(self) -> Iterator[list[tuple[float, float]]]:
        """Yield stretches of points without a failure in between."""
        run: list[tuple[float, float]] = []
        for point in self.points:
            if run and any(run[-1][0] < x < point[0] for x, _ in self.failures):
                yield run
                run = []
            run.append(point)
        yield run

    def _at(self, x: float) -> float:
        """Height on the log-log line through the neighbours; beyond the last point, on the last stretch's."""
        index = next((i for i, p in enumerate(self.points) if p[0] > x), len(self.points) - 1)
        (x1, y1), (x0, y0) = self.points[index], self.points[index - 1]
        if x1 <= x0:  # one point only: linear in N, for want of anything better
            return y1 * math.exp(2 * self._growth * math.log(x / x1))
        slope = math.log(y1 / y0) / math.log(x1 / x0)
        return y0 * math.exp(slope * math.log(x / x0))


def _set_axes(axes: Axes, curves: Sequence[_Curve], resolutions: Sequence[Resolution], label: str) -> None:
    sides = [math.sqrt(r.pixels) for r in resolutions]
    pad = max(0.03 * math.log(sides[-1] / sides[0]), 0.03)
    axes.set_xlim(sides[0] * math.exp(-pad), sides[-1] * math.exp(pad))
    heights = [y for curve in curves for _, y in (*curve.points, *curve.gaps, curve.end)]
    heights += [y for curve in curves for _, low, high in curve.bars for y in (low, high)]
    low, high = min(heights), max(heights)
    pad = max(0.06 * math.log(high / low), 0.08)
    axes.set_ylim(low * math.exp(-pad), high * math.exp(pad))
    shown = _spaced(sides, [r.label for r in resolutions], axes.get_xlim())
    axes.xaxis.set_major_locator(FixedLocator(sides))
    axes.xaxis.set_major_formatter(FixedFormatter([r.label if i in shown else "" for i, r in enumerate(resolutions)]))
    set_ticks(axes.yaxis, log_ticks(*axes.get_ylim()))
    dress(axes)
    axes.set_xlabel("resolution (pixels a side)", fontsize=LABEL_PT)
    axes.set_ylabel(label, fontsize=LABEL_PT)


def _spaced(sides: Sequence[float], labels: Sequence[str], limits: tuple[float, float]) -> set[int]:
    """Return the indices of labels that fit beside each other, the last and the first always among them."""
    inches = WIDTH_IN * 0.86 / math.log(limits[1] / limits[0])
    centres = [inches * math.log(side) for side in sides]
    halves = [len(label) * SMALL_PT * 0.33 / 72 + 0.04 for label in labels]
    kept = [len(sides) - 1]
    for index in reversed(range(len(sides) - 1)):
        fits = centres[index] + halves[index] <= centres[kept[-1]] - halves[kept[-1]]
        clears_first = index == 0 or centres[0] + halves[0] <= centres[index] - halves[index]
        if fits and clears_first:
            kept.append(index)
    return set(kept)


def _draw_guides(axes: Axes, curves: Sequence[_Curve], growth: int) -> None:
    """Draw what N and N² would be, from below the curves' start (above it where values fall)."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    sides = {x for curve in curves for x, _ in curve.points}
    if len(sides) < 3 or max(sides) < 1.5 * min(sides):
        return
    start = min(sides)
    at_start = [y for curve in curves for x, y in curve.points if x == start]
    anchor = min(at_start) * 0.9 if growth > 0 else max(at_start) / 0.9
    for power, name in ((1, "∝ N"), (2, "∝ N²")) if growth > 0 else ((1, "∝ 1/N"), (2, "∝ 1/N²")):
        slope = 2 * power * growth  # N = side²
        reach = min(right, start * ((top if growth > 0 else bottom) / anchor) ** (1 / slope))
        heights = [anchor * (x / start) ** slope for x in (left, reach)]
        axes.plot([left, reach], heights, color="#c4c4c4", linewidth=0.9, zorder=1)
        at = start * (reach / start) ** 0.93
        outside = power == 2  # the steep guide leaves the curves on one side of it, the flat one on the other
        below = outside == (growth < 0)
        axes.annotate(
            name, (at, anchor * (at / start) ** slope), xytext=(-4 if outside else 4, -2 if below else 2),
            textcoords="offset points", fontsize=SMALL_PT, color=GREY, ha="right" if outside else "left",
            va="top" if below else "bottom", zorder=9,
            path_effects=[Stroke(linewidth=2.5, foreground="white"), Normal()],
        )  # fmt: skip


def _label(curve: _Curve) -> str:
    if not curve.stop:
        return curve.model
    return f"{curve.model} ({curve.stop[1].status} at {curve.stop[1].cell.resolution.label})"


def _write_captions(
    figure: Figure, axes: Axes, subject: _Subject, group: Sequence[Record], curves: Sequence[_Curve]
) -> None:
    write_title(axes, subject.title, group)
    notes = []
    if any(curve.points and (curve.stop or curve.gaps) for curve in curves):
        notes.append("× no result at this size; its height is extrapolated, not measured")
    for curve in curves:
        # The one that ends a line is named at its label.
        failed = [r for x, r in curve.failures if not curve.points or x < curve.points[-1][0]]
        if failed:
            sizes = ", ".join(f"{r.cell.resolution.label} ({r.status})" for r in failed)
            notes.append(f"no result: {curve.model} at {sizes}")
    lines = [line for note in notes for line in textwrap.wrap(note, _NOTE_CHARACTERS)]
    for line, note in enumerate(lines):
        figure.text(
            0.11, 0.035 - line * SMALL_PT * 1.35 / 72 / figure.get_figheight(), note,
            fontsize=SMALL_PT, color="#555555", ha="left", va="top", parse_math=False,
        )  # fmt: skip
