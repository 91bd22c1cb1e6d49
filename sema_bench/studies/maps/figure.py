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
from sema_bench.studies.maps.last_map import Token, grid_position

_PANEL_IN, _HEAD_IN, _GAP_IN, _NARROWEST_IN = 1.9, 1.15, 0.1, 4.2
#: Narrow blocks stand side by side, up to this many panels.
_MOST_PANELS = 5
#: Space above a heading, for captions below it, and for the note at the foot.
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
    title: str  # of the image; empty: the image is not drawn
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
        return ", ".join(filter(None, (self.model, self.weights, f"{height}×{width}", self.title)))


def maps_figure(rows: Sequence[Panels], token: Token | None) -> Figure:
    """Draw a block of panels for each model and size: the image with its token, then its maps."""
    images = 1 if rows[0].title else 0
    columns = images + max(len(row.maps) for row in rows)
    blocks = [(row.heading, _PANEL_IN * _shape(row.pixels)) for row in rows]
    across = min(len(rows), max(1, _MOST_PANELS // columns))
    figure, panels = _grid(blocks, columns, _PANEL_IN, across=across, caption_in=_CAPTION_IN)
    for row, axes in zip(rows, panels, strict=True):
        if images:
            _show(axes[0], row.pixels, "image" if token is None else "image, token marked", row.pixels, token)
        for each, (caption, values, over_image) in zip(axes[images:], row.maps, strict=False):
            if values is None:
                _show(each, np.full((1, 1, 3), 245, dtype=np.uint8), caption, row.pixels, None)
            elif over_image:
                grey = np.repeat(row.pixels.mean(axis=2, keepdims=True) / 255, 3, axis=2)
                _show(each, grey, caption, row.pixels, None)
                _overlay(each, values, row.pixels)
            else:
                _show(each, np.sqrt(values), caption, row.pixels, token)
        for each in axes[images + len(row.maps) :]:
            each.axis("off")
    cams = any(over_image for row in rows for _, _, over_image in row.maps)
    _write_note(figure, f"square roots, from 0 to the largest{'; Grad-CAM as it is' if cams else ''}")
    return figure


def heads_figure(row: Panels, token: Token | None) -> Figure:
    """Draw the coefficients of a token, a row for each layer, a column for each head."""
    columns = max(len(layer.heads) for layer in row.heads)
    blocks = [
        (
            f"attention {layer.layer + 1}, {'×'.join(map(str, layer.heads.shape[1:]))} tokens",
            _HEAD_IN * _shape(row.pixels),
        )
        for layer in row.heads
    ]
    figure, panels = _grid(blocks, columns, _HEAD_IN, caption_in=0.2, title=row.heading)
    for layer, axes in zip(row.heads, panels, strict=True):
        for number, each in enumerate(axes):
            if number >= len(layer.heads):
                each.axis("off")
                continue
            weights = np.abs(layer.heads[number])
            peak = f"{fmt.number(float(weights.max() / weights.mean()))}× even" if weights.any() else "all 0"
            # An even share, such as SEMA's mean, is far below the largest.
            _show(each, np.sqrt(weights), f"{number + 1}: {peak}", row.pixels, token)
    _write_note(figure, "square roots, from 0 to the largest of each head; captions: the largest in units of the mean")
    return figure


def _shape(pixels: Pixels) -> float:
    return float(min(4.0, max(0.25, pixels.shape[0] / pixels.shape[1])))


def _grid(
    blocks: Sequence[tuple[str, float]],
    columns: int,
    panel_in: float,
    *,
    across: int = 1,
    caption_in: float,
    title: str = "",
) -> tuple[Figure, list[list[Axes]]]:
    """Make a figure of blocks, each a heading and the height of its panels, ``across`` in a row; lengths in inches."""
    block_in = columns * (panel_in + _GAP_IN)
    width = max(across * block_in + _GAP_IN, _NARROWEST_IN)
    heading_in = width if across == 1 else block_in
    headings = [textwrap.wrap(heading, int(heading_in * 13)) for heading, _ in blocks]
    lines = [slice(start, start + across) for start in range(0, len(blocks), across)]
    tops = [_ABOVE_IN + max(map(len, headings[line])) * _LINE_IN + caption_in for line in lines]
    heights = [max(own for _, own in blocks[line]) for line in lines]
    top = textwrap.wrap(title, int(width * 11))
    height = sum(tops) + sum(heights) + len(top) * 0.2 + 2 * _FOOT_IN
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    look: dict[str, Any] = {"fontweight": "bold", "va": "top", "parse_math": False}
    at = height - 0.1
    figure.text(_GAP_IN / width, at / height, "\n".join(top), fontsize=9.5, **look)
    at -= len(top) * 0.2
    rows = []
    for line, above, tallest in zip(lines, tops, heights, strict=True):
        for number, (wrapped, (_, own)) in enumerate(zip(headings[line], blocks[line], strict=True)):
            lefts = [_GAP_IN + number * block_in + column * (panel_in + _GAP_IN) for column in range(columns)]
            figure.text(lefts[0] / width, (at - _ABOVE_IN) / height, "\n".join(wrapped), fontsize=8.5, **look)
            box = ((at - above - own) / height, panel_in / width, own / height)
            rows.append([figure.add_axes((left / width, *box)) for left in lefts])
        at -= above + tallest
    return figure, rows


def _write_note(figure: Figure, note: str) -> None:
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(note, int(width * 17))
    figure.text(_GAP_IN / width, 0.08 / height, "\n".join(lines), fontsize=SMALL_PT, color=GREY)


def _show(axes: Axes, values: Any, caption: str, pixels: Pixels, token: Token | None) -> None:
    """Show a map, or pixels, over the whole image, with the token marked."""
    height, width = pixels.shape[:2]
    scale: dict[str, Any] = {} if values.ndim == 3 else {"cmap": "viridis", "vmin": 0}
    axes.imshow(values, interpolation="nearest", extent=(0, width, height, 0), **scale)
    if token is not None:
        rows, columns = values.shape[:2]
        row, column = grid_position(token, rows, columns)
        at = (column + 0.5) / columns * width, (row + 0.5) / rows * height
        # Around a token, a square; at a pixel, a cross.
        mark, points = ("+", 6) if (rows, columns) == (height, width) else ("s", 9)
        axes.plot(*at, color=_MARK, marker=mark, markersize=points, markeredgewidth=1.1, fillstyle="none")
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
