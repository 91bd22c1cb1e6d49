"""Show dispersion as a table, a CSV and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from sema_bench.report.columns import Column, exponent, print_columns
from sema_bench.report.figure_style import (
    GREY,
    SMALL_PT,
    dress,
    label_ends,
    log_log_figure,
    log_ticks,
    set_ticks,
    write_heading,
)
from sema_bench.report.line_styles import DASHES, head_of, line_styles, shared_backbone, short_name
from sema_bench.spec import units as fmt
from sema_bench.studies.dispersion.coefficients import Growth, Spread
from sema_bench.text.escape import csv_text

#: Nobody can distinguish more lines than these.
_MOST_LINES = 16


def print_growths(growths: Sequence[Growth], console: Console) -> None:
    """Print for each attention how its largest coefficient, entropy and support change with the number of keys."""
    for setting in dict.fromkeys(growth.first.setting for growth in growths):
        rows = [growth for growth in growths if growth.first.setting == setting]
        several = any(growth.first.layer > 0 for growth in rows)
        layers: list[Column] = [("layer", [Text(str(g.first.layer + 1)) for g in rows])] if several else []
        fewest, most = rows[0].first.keys, rows[0].last.keys
        print_columns(
            f"dispersion, {setting} features",
            "",
            [growth.first.model for growth in rows],
            [
                *layers,
                ("exponent of the\nlargest coefficient", [Text(exponent(g.exponent)) for g in rows]),
                ("over the larger\nhalf of the sizes", [Text(exponent(g.exponent_large)) for g in rows]),
                (f"largest,\n{fewest} keys", [Text(fmt.number(g.first.largest)) for g in rows]),
                (f"largest,\n{most} keys", [Text(f"{g.last.largest:.2e}") for g in rows]),
                (f"entropy / log N,\n{most} keys", [Text(f"{g.last.entropy_share:.3f}") for g in rows]),
                (f"support in keys,\nof {most}", [Text(fmt.number(g.last.support)) for g in rows]),
            ],
            console,
            justify="right",
        )
    console.print(
        Text(
            "\nlargest coefficient ∝ N^exponent: −1 is full dispersion, 0 is none; 95 % interval over the samples; "
            "means over queries and heads",
            style="dim",
        )
    )


def spreads_csv(spreads: Sequence[Spread]) -> str:
    """Write a row for each sample and number of keys."""
    return csv_text([field.name for field in dataclasses.fields(Spread)], map(dataclasses.astuple, spreads))


def dispersion_figure(spreads: Sequence[Spread], setting: str) -> Figure | None:
    """Plot the largest coefficient against the number of keys, a line per attention, or per model if there are many."""
    table = pd.DataFrame([spread for spread in spreads if spread.setting == setting])
    if table.empty:
        return None
    models = list(dict.fromkeys(table["model"]))
    apart = len(table.groupby(["model", "layer"])) <= _MOST_LINES
    several = apart and table["layer"].any()
    lines = list((table if apart else table.assign(layer=0)).groupby(["model", "layer"], sort=False))
    figure, axes = log_log_figure(lines=len(lines) + 1)
    keys = sorted(set(table["keys"].tolist()))
    ends = []
    styles, backbone = line_styles(models), shared_backbone(models)
    for (model, layer), line in lines:
        style = styles[model] | {"linestyle": DASHES[layer % len(DASHES)]}
        largest = line.groupby("keys")["largest"].agg(["min", "mean", "max"])
        axes.fill_between(
            largest.index, largest["min"], largest["max"], color=style["color"], alpha=0.13, linewidth=0, zorder=2
        )
        axes.plot(largest.index, largest["mean"], **style)
        name = short_name(model, backbone) + (f", layer {layer + 1}" if several else "")
        ends.append((name, (keys[-1], float(largest["mean"].iloc[-1])), str(style["color"])))
    even = [1 / n for n in keys]
    axes.plot(keys, even, color=GREY, linewidth=1.0, linestyle=(0, (2, 2)), zorder=2)
    ends.append(("even, 1/N", (keys[-1], even[-1]), GREY))
    axes.set_xlim(keys[0] / 1.15, keys[-1] * 1.15)
    axes.set_ylim(min(table["largest"].min(), even[-1]) / 1.5, 1.3)
    set_ticks(axes.xaxis, keys)
    set_ticks(axes.yaxis, log_ticks(*axes.get_ylim()))
    dress(axes, "keys N", "largest attention coefficient, mean over queries")
    axes.tick_params(labelsize=SMALL_PT)
    layers = "" if apart else ", mean over layers"
    features = "bounded random features" if setting == "random" else f"trained weights on scenes{layers}"
    heads = {head_of(model) for model in models} - {""}
    samples = f"mean and range of {table['sample'].nunique()} samples"
    parts = [backbone, *(f"{head} head" for head in sorted(heads)), samples]
    write_heading(axes, f"Dispersion of attention: {features}", " · ".join(filter(None, parts)))
    label_ends(axes, ends)
    return figure
