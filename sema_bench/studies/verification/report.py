"""Show the verdicts of ``sema-bench verify``: a table with a row per model, notes, and a CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal

from rich.console import Console
from rich.text import Text

from sema_bench.report.columns import print_columns
from sema_bench.studies.verification.verification import REFERENCE_SIDE, UNITS, Comparison, Verdict
from sema_bench.text.escape import csv_text, json_text

NOT_AVAILABLE = "n/a"
COLUMNS = ("model", "quantity", "resolution", "ours", "printed", "kind", "adjustment", "agreement", "source", "note")


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the table, then a line for each figure that needs more than rounding."""
    headings = (
        *("params", "official\ncode", "published\nM", "GMAC\nat 224", "official\ncode", "published\nG"),
        *("scan\nGFLOP", "top-1\npubl. %", "agrees"),
    )
    names, *cells = zip(*([Text(cell) for cell in _cells(verdict)] for verdict in verdicts), strict=True)
    columns = [(heading, list(column)) for heading, column in zip(headings, cells, strict=True)]
    print_columns("", "model", names, columns, console, justify="right", drop=(1, 4, 6, 7))
    for note in _notes(verdicts):
        console.print(Text(note), soft_wrap=not console.is_terminal)
    console.print(Text("how published counts come about: docs/method/macs.md"))


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """Write a row for each figure, and one for each of our counts without a figure; ``n/a`` for missing values."""
    rows = ([NOT_AVAILABLE if value is None else value for value in row] for row in _rows(verdicts))
    return csv_text(COLUMNS, rows)


def verdicts_json(verdicts: Sequence[Verdict]) -> str:
    """Write the same rows as JSON, with null for missing values; decimal numbers are texts that keep their digits."""
    rows = ([str(value) if isinstance(value, Decimal) else value for value in row] for row in _rows(verdicts))
    return json_text(COLUMNS, rows)


def _rows(verdicts: Sequence[Verdict]) -> Iterator[tuple[object, ...]]:
    for verdict in verdicts:
        counts = {"params": verdict.params, "gmacs": Decimal(verdict.macs or 0) / 10**9, "top1": None}
        if verdict.problem:
            yield (verdict.model, "params", REFERENCE_SIDE, None, None, "", "", "MISMATCH", "", verdict.problem)
            continue
        for comparison in verdict.comparisons:
            figure = comparison.figure
            ours: int | str | None = None if comparison.ours is None else f"{comparison.ours.normalize():f}"
            if ours is not None and figure.quantity == "params":
                ours = int(ours)
            printed = (figure.value, figure.kind, figure.adjustment, comparison.agreement, figure.source, figure.note)
            yield (figure.model, figure.quantity, figure.resolution, ours, *printed)
            counts.pop(figure.quantity, None)
        for quantity, count in counts.items():
            yield (verdict.model, quantity, REFERENCE_SIDE, count, None, "", "", None, "", "")


def _cells(verdict: Verdict) -> Iterator[str]:
    yield verdict.model
    yield _grouped(verdict.params)
    params = _printed(verdict, "params", "counted")
    yield params if params == NOT_AVAILABLE else _grouped(int(params))
    yield _printed(verdict, "mparams", "published")
    yield NOT_AVAILABLE if verdict.macs is None else f"{verdict.macs / 1e9:.3f}"
    yield _printed(verdict, "gmacs", "counted")
    yield _printed(verdict, "gmacs", "published")
    yield f"{verdict.scan_flops / 1e9:.3f}" if verdict.scan_flops else ""
    yield _printed(verdict, "top1", "published")
    yield verdict.agreement


def _printed(verdict: Verdict, quantity: str, kind: str) -> str:
    values = [
        c.figure.value
        for c in verdict.comparisons
        if (c.figure.quantity, c.figure.kind, c.figure.resolution) == (quantity, kind, REFERENCE_SIDE)
        and not (kind == "counted" and "scan" in c.figure.adjustment)  # scans have another column
    ]
    return " / ".join(dict.fromkeys(values)) or NOT_AVAILABLE


def _grouped(value: int | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:,}"


def _notes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        if verdict.problem:
            yield f"{verdict.model}: MISMATCH: it could not be counted: {verdict.problem}"
        for comparison in verdict.comparisons:
            if comparison.agreement in ("last digit", "MISMATCH") or comparison.figure.adjustment:
                yield _note(comparison)


def _note(comparison: Comparison) -> str:
    figure, ours = comparison.figure, comparison.ours
    unit = UNITS[figure.quantity][1]
    quantity = "params" if "params" in figure.quantity else f"at {figure.resolution}"
    line = f"{figure.model} {quantity}: printed {figure.value}{unit}, ours {ours:.3f}{unit}"
    if figure.adjustment and comparison.agreement != "not compared":
        line += f" with {figure.adjustment}"
    verdict = {
        "last digit": "one unit of the last printed digit",
        "rounds": "rounds to it",
        "exact": "equal",
    }.get(comparison.agreement, comparison.agreement)
    note = f"; {figure.note}" if figure.note else ""
    return f"{line}: {verdict}{note} ({figure.source})"
