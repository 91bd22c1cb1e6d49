"""Draw maps side by side: a row for each model and size, and the heads of one model, a row for each layer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sema_bench.data.base import Pixels
from sema_bench.report.figure_style import GREY, SMALL_PT
from sema_bench.spec import units as fmt
from sema_bench.studies.maps.coefficients import AttentionMap

_PANEL_IN, _HEAD_IN = 1.9, 1.15
#: Air above a heading, captions below it, the note at the foot.
_ABOVE_IN, _CAPTION_IN, _FOOT_IN = 0.16, 0.33, 0.3
#: Height of a line of text.
_LINE_IN = 0.16
#: Enough to read; more would only enlarge the files.
_DPI = 120
_MARK = "#D55E00"


@dataclass
class Panels:
    """The maps of one model on one image."""

    model: str
    weights: str  # name of the checkpoint, or random weights
    title: str  # of the image
    pixels: Pixels
    maps: list[tuple[str, NDArray[Any] | None, bool]] = field(default_factory=list)  # caption, map, over the image
    heads: list[AttentionMap] = field(default_factory=list)

    def add(self, caption: str, values: NDArray[Any] | None, *, over_image: bool = False) -> None:
        """Append a map (H, W); None leaves its panel empty."""
        self.maps.append((caption, values, over_image))

    @property
    def heading(self) -> str:
        """Model, weights, size and image."""
        height, width = self.pixels.shape[:2]
        return f"{self.model}, {self.weights}, {height}×{width}, {self.title}"


def maps_figure(rows: Sequence[Panels], token: tuple[float, float] | None) -> Figure:
    """Draw a row of panels for each model and size: the image with its token, then its maps."""
    columns = 1 + max(len(row.maps) for row in rows)
    heights = [_PANEL_IN * _shape(row.pixels) for row in rows]
    width = columns * (_PANEL_IN + 0.1) + 0.1
    figure, panels = _grid(width, heights, columns, [row.heading for row in rows], _PANEL_IN, caption_in=_CAPTION_IN)
    for row, axes in zip(rows, panels, strict=True):
        _show(axes[0], row.pixels, "image" if token is None else "image, token marked", row.pixels, token)
        for each, (caption, values, over_image) in zip(axes[1:], row.maps, strict=False):
            if values is None:
                _show(each, np.full((1, 1, 3), 245, dtype=np.uint8), caption, row.pixels, None)
            elif over_image:
                _show(
                    each, np.repeat(row.pixels.mean(axis=2, keepdims=True) / 255, 3, axis=2), caption, row.pixels, None
                )
                _overlay(each, values, row.pixels)
            else:
                _show(each, np.sqrt(values), caption, row.pixels, token)
        for each in axes[1 + len(row.maps) :]:
            each.axis("off")
    note = "rollout and receptive field are shown as square roots, from 0 to the largest"
    figure.text(0.1 / width, 0.08 / figure.get_figheight(), note, fontsize=SMALL_PT, color=GREY)
    return figure


def heads_figure(row: Panels, token: tuple[float, float] | None) -> Figure:
    """Draw the coefficients of a token, a row for each layer, a column for each head."""
    columns = max(len(layer.heads) for layer in row.heads)
    heights = [_HEAD_IN * _shape(row.pixels)] * len(row.heads)
    width = max(columns * (_HEAD_IN + 0.1) + 0.1, 4.2)
    headings = [
        f"attention {layer.layer + 1}, {'×'.join(map(str, layer.heads.shape[1:]))} tokens" for layer in row.heads
    ]
    figure, panels = _grid(width, heights, columns, headings, _HEAD_IN, caption_in=0.2, title=row.heading)
    for layer, axes in zip(row.heads, panels, strict=True):
        for number, each in enumerate(axes):
            if number >= len(layer.heads):
                each.axis("off")
                continue
            weights = np.abs(layer.heads[number])
            peak = f"{fmt.number(float(weights.max() / weights.mean()))}× even" if weights.any() else "all 0"
            # An even share, such as SEMA's mean, is far below the largest.
            _show(each, np.sqrt(weights), f"{number + 1}: {peak}", row.pixels, token)
    note = "square roots of the coefficients, from 0 to the largest of each head, which is given in units of its mean"
    lines = textwrap.wrap(note, int(width * 17))
    figure.text(0.1 / width, 0.08 / figure.get_figheight(), "\n".join(lines), fontsize=SMALL_PT, color=GREY)
    return figure


def _shape(pixels: Pixels) -> float:
    return float(min(4.0, max(0.25, pixels.shape[0] / pixels.shape[1])))


def _grid(
    width: float,
    heights: Sequence[float],
    columns: int,
    headings: Sequence[str],
    panel_in: float,
    *,
    caption_in: float,
    title: str = "",
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of rows of panels, each under its heading; all lengths in inches."""
    lines = [textwrap.wrap(heading, int(width * 13)) for heading in headings]
    top = textwrap.wrap(title, int(width * 11))
    gaps = [_ABOVE_IN + len(each) * _LINE_IN + caption_in for each in lines]
    height = sum(heights) + sum(gaps) + len(top) * 0.2 + 2 * _FOOT_IN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    at = height - 0.1
    look: dict[str, Any] = {"fontweight": "bold", "va": "top", "parse_math": False}
    figure.text(0.1 / width, at / height, "\n".join(top), fontsize=9.5, **look)
    at -= len(top) * 0.2
    rows = []
    for own, gap, wrapped in zip(heights, gaps, lines, strict=True):
        figure.text(0.1 / width, (at - _ABOVE_IN) / height, "\n".join(wrapped), fontsize=8.5, **look)
        at -= gap + own
        box = [(0.1 + column * (panel_in + 0.1), at) for column in range(columns)]
        rows.append([figure.add_axes((x / width, y / height, panel_in / width, own / height)) for x, y in box])
    return figure, rows


def _show(axes: Axes, values: Any, caption: str, pixels: Pixels, token: tuple[float, float] | None) -> None:
    """Show a map, or pixels, over the whole image, with the token marked."""
    height, width = pixels.shape[:2]
    scale: dict[str, Any] = {} if values.ndim == 3 else {"cmap": "viridis", "vmin": 0}
    axes.imshow(values, interpolation="nearest", extent=(0, width, height, 0), **scale)
    if token is not None:
        axes.plot(token[1] * width, token[0] * height, marker="+", color=_MARK, markersize=7, markeredgewidth=1.3)
    axes.set_title(caption, fontsize=SMALL_PT, loc="left", pad=3, parse_math=False)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)


def _overlay(axes: Axes, values: NDArray[Any], pixels: Pixels) -> None:
    """Lay a map over the image, more opaque where it is larger."""
    height, width = pixels.shape[:2]
    box: dict[str, Any] = {"interpolation": "bilinear", "extent": (0, width, height, 0), "vmin": 0, "vmax": 1}
    axes.imshow(values, cmap="inferno", alpha=0.6, **box)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
