"""What all figures share: size, colours, axes, title, and how they become bytes.

Figures are built without pyplot, so that no backend is chosen and no global state changes. The same records
give the same bytes: no date, fixed ids, text as paths.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from sema_bench.analysis.conditions import Conditions, environments_of
from sema_bench.report.layout import spread_labels
from sema_bench.spec.record import Record
from sema_bench.text.escape import printable_lines

GREY = "#8a8a8a"
WIDTH_IN, HEIGHT_IN, DPI = 6.4, 4.6, 160
LABEL_PT, SMALL_PT = 8.5, 7.5
#: Lines of end labels per inch of axis, from the font size with some air.
LINE_IN = LABEL_PT * 1.3 / 72


def log_log_figure(*, lines: int) -> tuple[Figure, Axes]:
    """Return an empty figure whose axis is high enough for the names of ``lines`` lines at its right."""
    height = max(HEIGHT_IN, lines * LINE_IN / 0.74 + 0.4)
    figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.11, 0.13, 0.86, 0.74))
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    return figure, axes


def dress(axes: Axes) -> None:
    """Draw grid, ticks and spines quietly."""
    axes.tick_params(labelsize=SMALL_PT, length=3, color=GREY)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)


def write_title(axes: Axes, title: str, group: Sequence[Record], fields: Iterable[str] | None = None) -> None:
    """Write what the figure shows above it, and under which conditions; of these only ``fields``, if they are given."""
    found = Conditions.of(group[0].cell)
    conditions = found.text if fields is None else found.text_of(fields)
    if fields is None and len(mixed := environments_of(group)) > 1:
        conditions += f" · {len(mixed)} environments mixed"
    place: dict[str, Any] = {"transform": axes.transAxes, "ha": "left"}
    axes.text(0, 1.095, title, fontsize=11, fontweight="bold", va="bottom", **place)
    axes.text(0, 1.04, conditions, fontsize=SMALL_PT, color="#555555", va="bottom", parse_math=False, **place)


def darker(colour: str) -> str:
    """Return a shade of ``colour`` that text can be read in on white."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"#{int(red * 0.65):02x}{int(green * 0.65):02x}{int(blue * 0.65):02x}"


def set_ticks(axis: Axis, ticks: Sequence[float], *, factor: float = 1.0) -> None:
    """Put ticks at these values and nowhere else, written as ``value / factor``."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([f"{tick / factor:g}" for tick in ticks]))


def label_ends(axes: Axes, ends: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Name lines at the right of the axes: (text, where the line ends, its colour); names keep clear of one another."""
    to_axes = axes.transData + axes.transAxes.inverted()
    starts = [tuple(to_axes.transform(end)) for _, end, _ in ends]
    fractions = [float(y) for _, y in starts]
    height_in = axes.figure.get_figheight() * axes.get_position().height  # type: ignore[union-attr]
    places = spread_labels(fractions, LINE_IN / height_in, 0.0, 1.0)
    for (text, _, colour), (across, fraction), place in zip(ends, starts, places, strict=True):
        axes.plot(
            [across, 1.0, 1.025], [fraction, fraction, place], transform=axes.transAxes, clip_on=False,
            color=colour, linewidth=0.6, alpha=0.7, linestyle=(0, (1, 2)), zorder=1,
        )  # fmt: skip
        axes.text(
            1.03, place, text, transform=axes.transAxes, fontsize=LABEL_PT, va="center", ha="left",
            color=darker(colour), parse_math=False,
        )  # fmt: skip


def render(figure: Figure, kind: str) -> bytes:
    """Return the figure as ``svg`` or ``png``."""
    for text in figure.findobj(Text):
        text.set_text(printable_lines(text.get_text()))
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "sema-bench"} if kind == "svg" else {"Software": "sema-bench"}
    with mpl.rc_context({"svg.hashsalt": "sema-bench", "svg.fonttype": "path"}), warnings.catch_warnings(), _no_date():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is drawn as a box
        figure.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return buffer.getvalue()


@contextlib.contextmanager
def _no_date() -> Iterator[None]:
    """Hide SOURCE_DATE_EPOCH: no date is written, and one that is no number stops matplotlib all the same."""
    given = os.environ.pop("SOURCE_DATE_EPOCH", None)
    try:
        yield
    finally:
        if given is not None:
            os.environ["SOURCE_DATE_EPOCH"] = given
