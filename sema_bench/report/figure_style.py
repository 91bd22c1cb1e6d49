"""Give all figures the same size, colours, axes, ticks, labels and titles, and write them as files.

Figures are built without pyplot, which would choose a backend and change global state. The same records give the same
bytes: no date, fixed ids, text as paths.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sema_bench.analysis.conditions import Conditions, environments_of
from sema_bench.spec.record import Record
from sema_bench.store.files import write_own
from sema_bench.text.escape import printable_lines

GREY = "#8a8a8a"
WIDTH_IN, HEIGHT_IN, DPI = 6.4, 4.6, 160
LABEL_PT, SMALL_PT = 8.5, 7.5
#: Height of a line of end labels in inches: the font size with some air.
LINE_IN = LABEL_PT * 1.3 / 72
#: Mantissas of ticks, coarse to fine.
_STEPS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
)


def log_log_figure(*, lines: int) -> tuple[Figure, Axes]:
    """Make an empty figure that is tall enough to name ``lines`` lines at its right."""
    height = max(HEIGHT_IN, lines * LINE_IN / 0.74 + 0.4)
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.74))
    axes.loglog()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    return figure, axes


def dress(axes: Axes, across: str = "", up: str = "") -> None:
    """Name the axes, and draw grid, ticks and spines in light colours."""
    axes.set_xlabel(across, fontsize=LABEL_PT)
    axes.set_ylabel(up, fontsize=LABEL_PT)
    axes.tick_params(labelsize=SMALL_PT, length=3, color=GREY)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def write_title(axes: Axes, title: str, group: Sequence[Record], fields: Collection[str] | None = None) -> None:
    """Write title and conditions above a figure; ``fields`` limits the conditions."""
    shared = Conditions.of(group[0].cell)
    conditions = shared.text if fields is None else shared.text_of(fields)
    if fields is None and len(mixed := environments_of(group)) > 1:
        conditions += f" · {len(mixed)} environments mixed"
    write_heading(axes, title, conditions)


def write_heading(axes: Axes, title: str, subtitle: str, *, at: float = 1.095) -> None:
    """Write a title and a smaller line above a figure; ``at`` is the height of the title on the axes."""
    look: dict[str, Any] = {"transform": axes.transAxes, "ha": "left", "va": "bottom", "parse_math": False}
    axes.text(0, at, title, fontsize=11, fontweight="bold", **look)
    axes.text(0, 1.04, subtitle, fontsize=SMALL_PT, color="#555555", **look)


def darker(colour: str) -> str:
    """Darken ``colour`` for text on white."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.65):02x}" for i in (1, 3, 5))


def set_ticks(axis: Axis, ticks: Sequence[float], labels: Sequence[str] | None = None, *, factor: float = 1.0) -> None:
    """Put ticks only at these values, with ``labels``, or written as ``value / factor``."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels or [f"{tick / factor:g}" for tick in ticks]))


def label_ends(axes: Axes, ends: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Name lines at the right of the axes without overlap: (text, end of the line, its colour)."""
    to_axes = axes.transData + axes.transAxes.inverted()
    starts = [tuple(to_axes.transform(end)) for _, end, _ in ends]
    figure: Any = axes.figure
    height_in = figure.get_figheight() * axes.get_position().height
    heights = spread_labels([float(y) for _, y in starts], LINE_IN / height_in, 0.0, 1.0)
    dotted: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.7, "linestyle": (0, (1, 2)), "zorder": 1, "clip_on": False}
    look: dict[str, Any] = {"fontsize": LABEL_PT, "va": "center", "ha": "left", "parse_math": False}
    for (text, _, colour), (across, end), height in zip(ends, starts, heights, strict=True):
        fraction = min(max(end, 0.0), 1.0)  # a line may leave the axes
        leader = [across, 1.0, 1.025], [fraction, fraction, height]
        axes.plot(*leader, transform=axes.transAxes, color=colour, **dotted)
        axes.text(1.03, height, text, transform=axes.transAxes, color=darker(colour), **look)


def log_ticks(low: float, high: float) -> list[float]:
    """Choose about four to nine round values between ``low`` and ``high`` for a log axis of any span."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if len(decades) > 10:
        return [10.0**decade for decade in decades[:: math.ceil(len(decades) / 9)] if low <= 10.0**decade <= high]
    for steps in _STEPS:
        ticks = [float(f"{step * 10.0**decade:.12g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks
    # Within a fifth of a decade a log axis is nearly linear, and so are its ticks.
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= rough)
    return [float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def spread_labels(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ``heights`` as little as possible until they lie ``gap`` apart within [low, high], in the same order.

    Neighbours that touch form a group whose mean stays (isotonic regression on the heights less their ranks). If they
    cannot all fit, they share the range evenly.
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    groups: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        mean, size = heights[index] - rank * gap, 1
        while groups and groups[-1][0] >= mean:
            other, count = groups.pop()
            mean, size = (other * count + mean * size) / (count + size), count + size
        groups.append((mean, size))
    ceiling = high - (len(order) - 1) * gap
    flat = (min(max(mean, low), ceiling) for mean, size in groups for _ in range(size))
    placed = {index: height + rank * gap for rank, (index, height) in enumerate(zip(order, flat, strict=True))}
    return [placed[index] for index in range(len(heights))]


def write_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write ``stem.svg`` and ``stem.png`` into ``folder``; raise StoreError if that fails."""
    paths = [folder / f"{stem}.{kind}" for kind in ("svg", "png")]
    for path in paths:
        write_own(path, render(figure, path.suffix[1:]))
    return paths


def render(figure: Figure, kind: str) -> bytes:
    """Render the figure as ``svg`` or ``png``."""
    for text in figure.findobj(Text):
        text.set_text(printable_lines(text.get_text()))
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "sema-bench"} if kind == "svg" else {"Software": "sema-bench"}
    with mpl.rc_context({"svg.hashsalt": "sema-bench", "svg.fonttype": "path"}), warnings.catch_warnings(), _no_date():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        figure.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return buffer.getvalue()


@contextlib.contextmanager
def _no_date() -> Iterator[None]:
    """Hide SOURCE_DATE_EPOCH: no date is written, but matplotlib fails on an invalid value."""
    given = os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["SOURCE_DATE_EPOCH"] = given
