"""Show corruption errors: models down, corruptions across."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.corruption import COLUMNS, CorruptionErrors
from sema_bench.analysis.scaling import Estimate
from sema_bench.report.columns import Column, print_columns
from sema_bench.spec.units import EMPTY, counted
from sema_bench.store.table import rows_frame


def corruption_frame(errors: Sequence[CorruptionErrors]) -> pd.DataFrame:
    """Make the table of corruption.csv: one row for each figure, shares instead of per cent."""
    return rows_frame((row for each in errors for row in each.rows()), columns=COLUMNS)


def print_corruption(errors: Sequence[CorruptionErrors], console: Console) -> None:
    """Print errors, and errors relative to the reference, for each set of conditions and each size."""
    for (conditions, size), each in itertools.groupby(errors, lambda of: (of.conditions.text, of.resolution.label)):
        group = list(each)
        console.print(Text(f"\ncorrupted images at {size} · {conditions}", style="bold"))
        _print("error, %", group, {"clean": [of.clean for of in group]}, [of.errors for of in group], console)
        if len(group) > 1:
            means = {"mCE": [of.mce for of in group], "relative\nmCE": [of.relative_mce for of in group]}
            _print("CE, %", group, means, [of.ce for of in group], console)
        for note in _notes(group):
            console.print(Text(note, style="dim"))


def corruption_sentences(errors: Sequence[CorruptionErrors]) -> list[tuple[str, list[str]]]:
    """Write the figures of ``print_corruption`` as sentences, for each set of conditions and each size."""
    sections = []
    for (conditions, size), each in itertools.groupby(errors, lambda of: (of.conditions.text, of.resolution.label)):
        group = list(each)
        lines = []
        for of in group:
            means = f"mCE {_percent(of.mce)} %; relative mCE {_percent(of.relative_mce)} %; " if len(group) > 1 else ""
            single = ", ".join(f"{name} {_percent(error)}" for name, error in of.errors.items())
            lines.append(f"{of.model}: {means}error in %: clean {_percent(of.clean)}, {single}.")
        lines += [f"{note}." for note in _notes(group)]
        sections.append((f"corrupted images at {size} · {conditions}", lines))
    return sections


def _print(
    corner: str,
    group: Sequence[CorruptionErrors],
    first: Mapping[str, Sequence[Estimate | None]],
    tables: Sequence[Mapping[str, Estimate]],
    console: Console,
) -> None:
    values = dict(first) | {name.replace("_", "\n"): [table.get(name) for table in tables] for name in tables[0]}
    columns: list[Column] = [(heading, list(map(_percent, column))) for heading, column in values.items()]
    drop = list(reversed(range(len(first), len(columns))))
    print_columns("", corner, [of.model for of in group], columns, console, justify="right", drop=drop)


def _notes(group: Sequence[CorruptionErrors]) -> Iterator[str]:
    first = group[0]
    severities = {", ".join(map(str, levels)) for levels in first.severities.values()}
    yield f"error: share of images, mean over severities {' or '.join(sorted(severities))}"
    if len(group) > 1:
        yield f"CE: error relative to that of {first.reference} (100 %); relative mCE: the same of what is lost"
        if free := [name for name in first.severities if name not in first.relative_ce]:
            yield f"not in relative mCE, as they cost {first.reference} nothing: {', '.join(free)}"
    if (weights := min(of.weights for of in group)) > 1:
        yield f"mean of {counted(weights, 'seed')}, half of Student's t interval over them, 95 %"
    else:
        yield "half of the interval over the test images, 95 %"


def _percent(estimate: Estimate | None) -> str:
    if estimate is None:
        return EMPTY
    half = "" if estimate.low is None else f" ±{100 * estimate.half_width:.1f}"
    return f"{100 * estimate.value:.1f}{half}"
