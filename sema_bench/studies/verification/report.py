"""Show the verdicts of ``sema-bench verify``: a table with a row per model, notes, and a CSV."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from decimal import Decimal

from rich.console import Console
from rich.text import Text

from sema_bench.report.columns import print_columns
from sema_bench.spec.resolution import Resolution
from sema_bench.studies.verification.measured import Pair
from sema_bench.studies.verification.verification import (
    MEASURED,
    REFERENCE,
    UNITS,
    UNPRINTED,
    WITHIN,
    Comparison,
    Figure,
    Verdict,
)
from sema_bench.text.escape import csv_text, json_text

NOT_AVAILABLE = "n/a"
#: Shown for a value that this command cannot compute.
NOT_HERE = "n/a here"
#: A row of published figures that is this wide fits 80 columns beside the model and its size.
_PUBLISHED_WIDTH = 48
COLUMNS = (
    *("model", "quantity", "resolution", "ours", "printed", "kind", "adjustment", "conditions"),
    *("agreement", "source", "note"),
)


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print a row of counts per model and size, a line per count that needs more than rounding, and the rest."""
    headings = (
        *("size", "params", "official\nparams", "published\nM", "GMAC", "official\nGMAC", "published\nG"),
        *("scan\nGFLOP", "agrees"),
    )
    rows = [row for verdict in verdicts for row in _counts(verdict)]
    _print_rows("", headings, rows, console, drop=(2, 5, 7))
    for note in _notes(verdicts):
        console.print(Text(note), soft_wrap=not console.is_terminal)
    console.print(Text("how published counts come about: docs/method/macs.md"))
    if measured := [row for verdict in verdicts for row in _measurements(verdict)]:
        title = "published measurements, and totals of detectors and segmenters (sources: --csv)"
        _print_rows(title, ("size", "conditions", "published", "computed", "note"), measured, console, drop=(4, 1, 3))


def _print_rows(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], console: Console, *, drop: Sequence[int]
) -> None:
    names, *cells = zip(*([Text(cell) for cell in row] for row in rows), strict=True)
    columns = [(heading, list(column)) for heading, column in zip(headings, cells, strict=True)]
    print_columns(title, "model", names, columns, console, justify="left" if title else "right", drop=drop)


def verdicts_csv(verdicts: Sequence[Verdict]) -> str:
    """Write a row for each figure, and one for each of our counts without a figure; ``n/a`` for missing values."""
    missing = dict.fromkeys(COLUMNS, NOT_AVAILABLE) | {"ours": NOT_HERE}
    rows = (
        [missing[name] if v is None else v for name, v in zip(COLUMNS, row, strict=True)] for row in _rows(verdicts)
    )
    return csv_text(COLUMNS, rows)


def verdicts_json(verdicts: Sequence[Verdict]) -> str:
    """Write the same rows as JSON, with null for missing values; decimals are strings, which keep their digits."""
    rows = ([str(value) if isinstance(value, Decimal) else value for value in row] for row in _rows(verdicts))
    return json_text(COLUMNS, rows)


def _rows(verdicts: Sequence[Verdict]) -> Iterator[tuple[object, ...]]:
    for verdict in verdicts:
        if verdict.problem:
            yield (verdict.model, "params", _size(REFERENCE), None, None, *[""] * 3, "MISMATCH", "", verdict.problem)
            continue
        counts = {"params": verdict.params, "gmacs": Decimal(verdict.macs[REFERENCE].total) / 10**9, "top1": None}
        for comparison in verdict.comparisons:
            figure = comparison.figure
            ours: int | str | None = None if comparison.ours is None else f"{comparison.ours.normalize():f}"
            if ours is not None and figure.quantity == "params":
                ours = int(ours)
            printed = (figure.value, figure.kind, figure.adjustment, figure.conditions, comparison.agreement)
            yield (figure.model, figure.quantity, _size(figure.resolution), ours, *printed, figure.source, figure.note)
            if "task" not in figure.stated:
                counts.pop(figure.quantity, None)
        for quantity, count in counts.items():
            yield (verdict.model, quantity, _size(REFERENCE), count, None, *[""] * 3, None, "", "")


def _size(resolution: Resolution) -> int | str:
    """Write a square size as a number."""
    return resolution.height if resolution.height == resolution.width else str(resolution)


def _counts(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """Make a row per size: 224, and the others at which a count was printed."""
    for size in verdict.macs or [REFERENCE]:
        official = _printed(verdict, "params", "counted", size)
        macs = verdict.macs.get(size)
        yield (
            verdict.model,
            size.label,
            _grouped(verdict.params) if size == REFERENCE else "",
            official if official in ("", NOT_AVAILABLE) else _grouped(int(official)),
            _printed(verdict, "mparams", "published", size),
            NOT_AVAILABLE if macs is None else f"{macs.total / 1e9:.3f}",
            _printed(verdict, "gmacs", "counted", size),
            _printed(verdict, "gmacs", "published", size),
            f"{macs.scan_flops / 1e9:.3f}" if macs and macs.scan_flops else "",
            verdict.agreement(size),
        )


def _printed(verdict: Verdict, quantity: str, kind: str, size: Resolution) -> str:
    values = [
        c.figure.value
        for c in verdict.comparisons
        if (c.figure.quantity, c.figure.kind, c.figure.resolution) == (quantity, kind, size)
        and c.figure.is_count
        and not (kind == "counted" and "scan" in c.figure.adjustment)  # scans have another column
    ]
    return " / ".join(dict.fromkeys(values)) or (NOT_AVAILABLE if size == REFERENCE else "")


def _measurements(verdict: Verdict) -> Iterator[tuple[str, ...]]:
    """Make a row for everything published on the model at one size under the same conditions."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in verdict.comparisons:
        figure = comparison.figure
        if not figure.is_count:
            key = (figure.resolution.label, figure.conditions, figure.note)
            groups.setdefault(key, []).append(comparison)
    for (size, conditions, note), comparisons in groups.items():
        published = dict.fromkeys(_in_words(each.figure).replace(" ", "\xa0") for each in comparisons)
        first, *more = textwrap.wrap(", ".join(published), _PUBLISHED_WIDTH)  # a line breaks between figures
        computed = ", ".join(_computed(each) for each in comparisons if each.ours is not None)
        yield verdict.model, size, conditions, first.replace("\xa0", " "), computed or NOT_HERE, note
        for line in more:
            yield verdict.model, size, conditions, line.replace("\xa0", " "), "", ""


def _computed(comparison: Comparison) -> str:
    """Write our total and how it agrees: ``266.6 G (rounds)``."""
    value, verdict = f"{comparison.ours:.1f}", comparison.agreement
    words = _in_words(dataclasses.replace(comparison.figure, value=value))
    return words if verdict == UNPRINTED else f"{words} ({verdict})"


def _in_words(figure: Figure) -> str:
    """Write a figure with its quantity: ``top-1 83.5 %``."""
    if figure.value == UNPRINTED:
        return UNPRINTED
    if figure.quantity in MEASURED:
        return MEASURED[figure.quantity].format(figure.value)
    return f"{'params ' if 'params' in figure.quantity else ''}{figure.value}{UNITS[figure.quantity][1]}"


def _grouped(value: int | None) -> str:
    return NOT_AVAILABLE if value is None else f"{value:,}"


def _notes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for verdict in verdicts:
        if verdict.problem:
            yield f"{verdict.model}: MISMATCH: it could not be counted: {verdict.problem}"
        for comparison in verdict.comparisons:
            if comparison.agreement in ("last digit", WITHIN, "MISMATCH") or comparison.figure.adjustment:
                yield _note(comparison)


def _note(comparison: Comparison) -> str:
    figure, ours = comparison.figure, comparison.ours
    unit = UNITS[figure.quantity][1]
    quantity = "params" if "params" in figure.quantity else f"at {figure.resolution.label}"
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


PAIR_COLUMNS = (
    *("model", "quantity", "resolution", "measured", "ci_low", "ci_high", "printed", "conditions"),
    *("differences", "source", "note"),
)


def print_pairs(run: str, pairs: Sequence[Pair], console: Console) -> None:
    """Print what a run measured beside published figures, a row per figure, and the differences below."""
    marks = {text: f"({number})" for number, text in enumerate(dict.fromkeys(map(_differences, pairs)), 1)}
    rows = []
    for pair in pairs:
        figure, (value, low, high) = pair.figure, pair.ours
        half = "" if low is None or high is None else f" ±{(high - low) / 2:.2f}"
        cells = (figure.model, figure.resolution.label, figure.quantity, f"{value:.2f}{half}", figure.value)
        rows.append((*cells, marks[_differences(pair)], figure.source, figure.note))
    headings = ("size", "quantity", "measured", "published", "differs", "source", "note")
    _print_rows(f"run {run} beside published figures", headings, rows, console, drop=(6, 5))
    for text, mark in marks.items():
        console.print(Text(f"{mark} {text}"), soft_wrap=not console.is_terminal)
    console.print(Text("differences of protocol: ours | theirs"))


def _differences(pair: Pair) -> str:
    return "; ".join(pair.differences) or "none known"


def pairs_csv(pairs: Sequence[Pair]) -> str:
    """Write a row for each figure beside the measurement."""
    return csv_text(PAIR_COLUMNS, _pair_rows(pairs))


def pairs_json(pairs: Sequence[Pair]) -> str:
    """Write the same rows as JSON."""
    return json_text(PAIR_COLUMNS, _pair_rows(pairs))


def _pair_rows(pairs: Sequence[Pair]) -> Iterator[tuple[object, ...]]:
    for pair in pairs:
        figure = pair.figure
        named = (figure.model, figure.quantity, _size(figure.resolution))
        yield (
            *named,
            *pair.ours,
            figure.value,
            figure.conditions,
            "; ".join(pair.differences),
            figure.source,
            figure.note,
        )
