"""Draw attention maps and the effective receptive field of one token beside the image."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sema_bench.data.base import Pixels
from sema_bench.report.figure_style import DPI, GREY, SMALL_PT
from sema_bench.spec import units as fmt
from sema_bench.studies.maps.coefficients import AttentionMap

_PER_ROW = 4
_PANEL_IN = 1.9
#: Letters of the title above one panel.
_LETTERS = 22
_MARK = "#D55E00"


def maps_figure(
    pixels: Pixels,
    where: tuple[float, float],
    maps: Sequence[AttentionMap],
    field: NDArray[np.float32],
    *,
    title: str,
) -> Figure:
    """Draw the image (H, W, 3) with its token at ``where`` marked, the receptive field, and a map per attention."""
    shown = [("image, token marked", pixels)]
    shown += [("effective receptive field", np.sqrt(field))]  # to show faint distant pixels
    for each in maps:
        grid = "×".join(str(side) for side in each.weights.shape)
        largest = fmt.number(float(each.weights.max() / each.weights.mean()))
        caption = f"attention {each.layer + 1}, {grid}\nlargest {largest} × even"
        # An even share, such as SEMA's mean, is far below the largest.
        shown.append((caption, np.sqrt(np.abs(each.weights))))
    rows, columns = math.ceil(len(shown) / _PER_ROW), min(len(shown), _PER_ROW)
    figure = Figure(figsize=(columns * _PANEL_IN, rows * (_PANEL_IN + 0.35) + 0.5), dpi=DPI, facecolor="white")
    panels = iter(figure.subplots(rows, columns, squeeze=False).flat)
    for caption, values in shown:
        _panel(next(panels), values, caption, where, pixels.shape[:2])
    for empty in panels:
        empty.axis("off")
    lines = textwrap.wrap(title, columns * _LETTERS)
    figure.suptitle("\n".join(lines), fontsize=10, fontweight="bold", x=0.02, ha="left", parse_math=False)
    figure.text(0.02, 0.01, "maps show square roots, tokens as rows × columns", fontsize=SMALL_PT, color=GREY)
    height_in = figure.get_figheight()
    figure.tight_layout(rect=(0, 0.2 / height_in, 1, 1 - 0.17 * (len(lines) - 1) / height_in))
    return figure


def _panel(axes: Axes, values: Any, caption: str, where: tuple[float, float], size: tuple[int, ...]) -> None:
    height, width = size
    axes.imshow(values, cmap="viridis", interpolation="nearest", extent=(0, width, height, 0))
    axes.plot(where[1] * width, where[0] * height, marker="+", color=_MARK, markersize=9, markeredgewidth=1.6)
    axes.set_title(caption, fontsize=SMALL_PT, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(GREY)
