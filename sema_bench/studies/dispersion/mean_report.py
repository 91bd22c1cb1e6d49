"""Show how far softmax is from the mean of its values, as tables and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.scaling import Estimate
from sema_bench.report.columns import Column, exponent, print_columns
from sema_bench.report.line_styles import DASHES, LINE, MARKERS, line_styles, shared_backbone, short_name
from sema_bench.spec import units as fmt
from sema_bench.studies.dispersion.figure import Line, draw_panels
from sema_bench.studies.dispersion.mean import DISTANCES, Distance, approach, approach_in_width
from sema_bench.studies.dispersion.report import layer_column


def print_approach(distances: Sequence[Distance], console: Console) -> None:
    """Print the distances at the most keys, and their exponents in the number of keys and of channels."""
    cases = approach(distances)
    for setting in dict.fromkeys(case.case["setting"] for case in cases):
        rows = [case for case in cases if case.case["setting"] == setting]
        columns: list[Column] = [*layer_column(rows), ("channels", [str(row.case["channels"]) for row in rows])]
        if setting == "random":
            columns.append(("common\nshare p", [f"{row.case['common']:g}" for row in rows]))
        for measure, written in DISTANCES.items():
            trends = [row.trends[measure] for row in rows]
            columns.append((f"{written},\n{rows[0].last_size} keys", [_value(trend.last) for trend in trends]))
            columns.append(("exponent\nin N", [exponent(trend.exponent) for trend in trends]))
            columns.append(("over the\nlarger half", [exponent(trend.exponent_large) for trend in trends]))
        for measure, written in (("common_of_values", "‖v̄‖² / ‖v‖²"), ("score_deviation", "deviation\nof scores")):
            columns.append((written, [fmt.number(row.trends[measure].last.value) for row in rows]))
        names = [str(row.case["model"]) for row in rows]
        print_columns(f"softmax and the mean, {setting} features", "", names, columns, console, justify="right")
    widths = approach_in_width(distances)
    slopes = [(text, [exponent(row.trends[name].exponent) for row in widths]) for name, text in DISTANCES.items()]
    shares = [f"common share {row.case['common']:g}" for row in widths]
    print_columns("exponents in the channels C, at the most keys", "", shares, slopes, console, justify="right")
    note = (
        "\no: output of softmax over N keys; v̄: mean of the values; distance ∝ N^exponent: 0 is a distance that stays; "
        "95 % intervals over the samples; norms are root mean squares over queries, ‖v‖ over all tokens"
    )
    console.print(Text(note, style="dim"))


def mean_figure(distances: Sequence[Distance], setting: str) -> Figure | None:
    """Plot the distances against the number of keys; random features have a row for each common share."""
    table = pd.DataFrame([each for each in distances if each.setting == setting])
    if table.empty:
        return None
    samples = f"mean and range of {table['sample'].nunique()} samples"
    if setting == "trained":
        models = list(dict.fromkeys(table["model"]))
        styles, backbone = line_styles(models), shared_backbone(models)
        lines = [
            Line(
                f"{short_name(model, backbone)}, layer {layer + 1}",
                styles[model] | {"linestyle": DASHES[layer % 4]},
                each,
            )
            for (model, layer), each in table.groupby(["model", "layer"], sort=False)
        ]
        heading = (
            "Softmax and the mean: trained weights on scenes",
            " · ".join(filter(None, [backbone, samples, "o: softmax over all tokens"])),
        )
        return draw_panels(heading, {"": lines}, DISTANCES)
    rows, widths = {}, sorted(set(table["channels"]))
    shades = dict(zip(widths, colormaps["Oranges"](np.linspace(0.4, 1, len(widths))), strict=True))
    for share, group in table.groupby("common", sort=False):
        rows[f"common share {share:g}"] = [
            Line(
                f"C = {width}",
                LINE | {"color": to_hex(shades[width]), "marker": MARKERS[widths.index(width) % len(MARKERS)]},
                each,
            )
            for width, each in group.groupby("channels")
        ]
    return draw_panels(("Softmax and the mean: bounded random features", samples), rows, DISTANCES)


def _value(estimate: Estimate) -> str:
    """Write three digits, and the interval to the same place."""
    value = fmt.number(estimate.value)
    places = len(value.partition(".")[2])
    return value if estimate.low is None else f"{value} ±{estimate.half_width:.{places}f}"
