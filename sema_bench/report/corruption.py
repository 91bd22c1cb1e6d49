"""Show corruption errors: models down, the means and the corruptions across."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

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
    """Print a table for each set of conditions and each size, in per cent."""
    for (conditions, size), each in itertools.groupby(errors, lambda of: (of.conditions.text, of.resolution.label)):
        group = list(each)
        console.print(Text(f"\ncorrupted images at {size}, errors in % · {conditions}", style="bold"))
        columns: list[Column] = [
            ("clean", [_percent(of.clean) for of in group]),
            ("mCE", [_percent(of.mce) for of in group]),
            ("relative\nmCE", [_percent(of.relative_mce) for of in group]),
        ]
        for name in group[0].severities:
            columns.append((name.replace("_", "\n"), [_percent(of.ce.get(name)) for of in group]))
        names = [of.model for of in group]
        print_columns("", "CE", names, columns, console, justify="right", drop=[*reversed(range(3, len(columns)))])
        for note in _notes(group):
            console.print(Text(note, style="dim"))


def _notes(group: Sequence[CorruptionErrors]) -> Iterator[str]:
    first = group[0]
    yield (
        "clean: share of errors without corruption; all others: errors relative to those of "
        f"{first.reference} (100 %), below 100 is better"
    )
    severities = {" ".join(map(str, levels)) for levels in first.severities.values()}
    yield f"over severities {' or '.join(sorted(severities))}; mCE is the mean, relative mCE that of what is lost"
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
