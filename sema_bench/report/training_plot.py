"""Plot loss and accuracy of a training over its epochs."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sema_bench.report.figure_style import DPI, WIDTH_IN, dress, write_figure
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.store.files import check_own_folder

#: Points of the smoothed line; each is the mean of equally many steps.
_POINTS = 200

#: Letters in one line of a title.
_TITLE_LETTERS = 80
_LOSS, _ACCURACY = "#0072B2", "#D55E00"


def write_training_plot(entries: Sequence[Mapping[str, Any]], folder: Path, *, title: str) -> None:
    """Write ``training.svg`` and ``training.png`` if any entry has a loss; raise StoreError if that fails."""
    losses = [(float(e["epoch"]), float(e["loss"])) for e in entries if "loss" in e]
    metric = next((name for name in ACCURACIES if any(name in e for e in entries)), "")
    tests = [(e["epoch"], e[metric], e[f"{metric}_low"], e[f"{metric}_high"]) for e in entries if metric in e]
    if not losses:
        return
    check_own_folder(folder)
    figure = Figure(figsize=(WIDTH_IN, 4.6 if tests else 3.0), dpi=DPI, facecolor="white")
    above, *below = figure.subplots(1 + bool(tests), 1, sharex=True, squeeze=False)[:, 0]
    above.plot(*zip(*losses, strict=True), color=_LOSS, linewidth=0.5, alpha=0.35)
    above.plot(*zip(*_smoothed(losses), strict=True), color=_LOSS, linewidth=1.4)
    for axes in below:
        epochs, values, low, high = np.array(tests, dtype=float).T  # a bound that is missing is NaN: no bar
        spread = 100 * np.stack([values - low, high - values])
        look: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.4, "capsize": 2}
        axes.errorbar(epochs, 100 * values, yerr=spread, color=_ACCURACY, **look)
        dress(axes, "epoch", f"{METRICS[metric].short} on test images, %\n(95 % interval)")
    dress(above, "" if below else "epoch", "training loss, nats")
    above.set_title(textwrap.fill(title, _TITLE_LETTERS), fontsize=9, fontweight="bold", loc="left", parse_math=False)
    figure.align_ylabels()
    write_figure(figure, folder, "training")


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the means of neighbouring points."""
    size = max(1, len(points) // _POINTS)
    chunks = (zip(*points[start : start + size], strict=True) for start in range(0, len(points), size))
    return [(statistics.fmean(xs), statistics.fmean(ys)) for xs, ys in chunks]
