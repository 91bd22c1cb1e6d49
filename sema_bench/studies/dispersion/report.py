"""Show dispersion as a table, a CSV and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from sema_bench.report.columns import Column, exponent, print_columns
from sema_bench.report.line_styles import DASHES, head_of, line_styles, mechanism_of, shared_backbone, short_name
from sema_bench.spec import units as fmt
from sema_bench.studies.dispersion.coefficients import WITHIN_THEOREM, Spread
from sema_bench.studies.dispersion.figure import Line, draw_panels
from sema_bench.studies.dispersion.mean import Distance
from sema_bench.studies.dispersion.trend import Summary
from sema_bench.text.escape import csv_text

#: Nobody can distinguish more lines than these.
_MOST_LINES = 16
_MEASURES = {
    "largest": "largest coefficient",
    "smallest": "smallest coefficient",
    "support_share": "effective support / N",
}


def print_growths(growths: Sequence[Summary], console: Console) -> None:
    """Print how the coefficients of each attention change with the number of keys."""
    for setting in dict.fromkeys(growth.case["setting"] for growth in growths):
        rows = [growth for growth in growths if growth.case["setting"] == setting]
        names = [str(row.case["model"]) for row in rows]
        print_columns(f"dispersion, {setting} features", "", names, _columns(rows), console, justify="right")
    note = (
        "\na coefficient ∝ N^exponent: Θ(1/N), dispersion, is −1 for the largest and the smallest; – where some are 0; "
        "support = 1/Σα²; negative share of Σ|α|; 95 % intervals over the samples; means over queries and heads\n"
        "the theorem covers softmax and linear attention, positive coefficients of all keys; the others are measured"
    )
    console.print(Text(note, style="dim"))


def _columns(rows: Sequence[Summary]) -> list[Column]:
    fewest, most = rows[0].first_size, rows[0].last_size
    within = [mechanism_of(row.case["model"]) in WITHIN_THEOREM for row in rows]
    columns = [*layer_column(rows), ("theorem", ["covered" if each else "measured" for each in within])]
    for side in ("largest", "smallest"):
        trends = [row.trends[side] for row in rows]
        columns += [
            (f"exponent of\nthe {side}", [exponent(trend.exponent) for trend in trends]),
            ("over the\nlarger half", [exponent(trend.exponent_large) for trend in trends]),
            (f"{side} × N,\n{most} keys", [_number(most * trend.last.value) for trend in trends]),
        ]
    support = [row.trends["support_share"] for row in rows]
    return [
        *columns,
        (f"support / N,\n{fewest} keys", [f"{trend.first.value:.3f}" for trend in support]),
        (f"support / N,\n{most} keys", [f"{trend.last.value:.3f}" for trend in support]),
        ("negative\nshare", [f"{row.trends['negative_share'].last.value:.3f}" for row in rows]),
    ]


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 1e-3 else fmt.number(value)


def layer_column(rows: Sequence[Summary]) -> list[Column]:
    """Name the layers, if there is more than the first."""
    layers = [int(row.case["layer"]) for row in rows]
    return [("layer", [str(layer + 1) for layer in layers])] if any(layers) else []


def rows_csv(rows: Sequence[Spread] | Sequence[Distance]) -> str:
    """Write a row for each sample and number of keys."""
    return csv_text([field.name for field in dataclasses.fields(rows[0])], map(dataclasses.astuple, rows))


def dispersion_figure(spreads: Sequence[Spread], setting: str) -> Figure | None:
    """Plot coefficients against the number of keys, a line per attention, or per model if there are many."""
    table = pd.DataFrame([spread for spread in spreads if spread.setting == setting])
    if table.empty:
        return None
    models = list(dict.fromkeys(table["model"]))
    apart = len(table.groupby(["model", "layer"])) <= _MOST_LINES
    several = apart and table["layer"].any()
    styles, backbone = line_styles(models), shared_backbone(models)
    lines = []
    for (model, layer), each in (table if apart else table.assign(layer=0)).groupby(["model", "layer"], sort=False):
        name = short_name(model, backbone) + (f", layer {layer + 1}" if several else "")
        lines.append(Line(name, styles[model] | {"linestyle": DASHES[layer % len(DASHES)]}, each))
    layers = "" if apart else ", mean over layers"
    features = "bounded random features" if setting == "random" else f"trained weights on scenes{layers}"
    heads = {head_of(model) for model in models} - {""}
    samples = f"mean over queries, mean and range of {table['sample'].nunique()} samples · grey: 1/N"
    subtitle = " · ".join(filter(None, [backbone, *(f"{head} head" for head in sorted(heads)), samples]))
    heading = (f"Dispersion of attention: {features}", subtitle)
    return draw_panels(heading, {"": lines}, _MEASURES, even=("largest", "smallest"))
