"""Show the areas of receptive fields as a table and a CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from sema_bench.report.columns import print_columns
from sema_bench.spec import units as fmt
from sema_bench.spec.resolution import Resolution
from sema_bench.statistics import mean_interval
from sema_bench.studies.maps.field import FieldArea
from sema_bench.text.escape import csv_text, printable


def areas_csv(areas: Sequence[FieldArea]) -> str:
    """Write a row for each model, size and seed."""
    return csv_text([field.name for field in dataclasses.fields(FieldArea)], map(dataclasses.astuple, areas))


def print_areas(areas: Sequence[FieldArea], console: Console) -> None:
    """Print the share of pixels in the field of each model and size, mean and 95 % interval over the seeds."""
    if not areas:
        return
    cases = [group for _, group in pd.DataFrame(areas).groupby(["model", "height_px", "width_px"], sort=False)]
    columns = [
        ("weights", ["trained" if case["weights"].iloc[0] else "random" for case in cases]),
        ("resolution", [Resolution(case["height_px"].iloc[0], case["width_px"].iloc[0]).label for case in cases]),
        ("50 % in", [_mean_percent(list(case["area_50_share"])) for case in cases]),
        ("90 % in", [_mean_percent(list(case["area_90_share"])) for case in cases]),
    ]
    names = [case["model"].iloc[0] for case in cases]
    print_columns("effective receptive field, share of pixels", "", names, columns, console, justify="right")
    first, seeds = areas[0], len({area.seed for area in areas})
    drawn = " and ".join(["images", *(["random weights"] if not all(area.weights for area in areas) else [])])
    images = f"{fmt.counted(first.samples, 'image')} of {first.images} each"
    note = f"smallest share of pixels with 50 or 90 % of the field; {images}"
    if seeds > 1:
        note += f"; mean over {seeds} seeds of {drawn}, with a 95 % interval by Student's t"
    console.print(Text("\n" + printable(note), style="dim"))


def _mean_percent(shares: Sequence[float]) -> str:
    mean, low, _ = mean_interval(shares)
    return f"{100 * mean:.2f} %" + ("" if low is None else f" ±{100 * (mean - low):.2f}")
