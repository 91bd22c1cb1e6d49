"""Show a ledger as a tree in a terminal, and as CSV: modules down, sources and kinds of cost across."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.text import Text

from sema_bench.counting.costs import Costs, Entry, Ledger
from sema_bench.report.columns import print_columns
from sema_bench.spec import units as fmt
from sema_bench.text.escape import csv_text

_KINDS = ("attention", "projection", "convolution", "normalisation_flops", "elementwise_flops", "scan_flops")

CSV_COLUMNS = (
    *("module", "kind", "params", "params_total", "macs_analytic", "macs_fvcore", "macs_flop_counter"),
    *("macs_attention", "macs_projection", "macs_convolution"),
    *("flops_normalisation", "flops_elementwise", "scan_flops", "agrees"),
)


@dataclass(frozen=True)
class Line:
    """One line of the tree: a module, or the first of ``count`` neighbours of the same kind and cost."""

    entry: Entry
    label: str
    depth: int
    count: int = 1


def tree_lines(ledger: Ledger, *, depth: int | None = None) -> Iterator[Line]:
    """Yield the modules as a tree, down to ``depth`` levels; equal neighbours share a line."""
    yield Line(ledger.total, ledger.total.kind, 0)
    yield from _below(ledger, "", 1, depth)


def _below(ledger: Ledger, path: str, level: int, depth: int | None) -> Iterator[Line]:
    if depth is not None and level > depth:
        return
    shown = [child for child in ledger.children(path) if child.params_total or child.costs != Costs()]
    for _, alike in groupby(shown, key=lambda child: _figures(ledger, child)):
        first, *rest = alike
        name = first.path.rpartition(".")[2]
        label = f"{name} … {rest[-1].path.rpartition('.')[2]}" if rest else name
        yield Line(first, label, level, 1 + len(rest))
        yield from _below(ledger, first.path, level + 1, depth)


def _figures(ledger: Ledger, entry: Entry) -> tuple[object, ...]:
    """Return the figures of a module and its submodules; neighbours with the same figures share a line."""
    below = tuple(_figures(ledger, child) for child in ledger.children(entry.path))
    return (entry.kind, entry.params, entry.params_total, entry.formula, entry.fvcore, entry.costs, below)


def print_ledger(ledger: Ledger, console: Console, *, depth: int | None = None) -> None:
    """Print the tree, operators that no source covers, and where the sources differ."""
    total = ledger.total
    unit = fmt.unit_for("macs", filter(None, total.sources.values()))
    flops = fmt.Unit(unit.symbol.replace("MACs", "FLOPs").replace("MAC", "FLOP"), unit.factor)
    scans = total.costs is not None and total.costs.scan_flops > 0
    headings = [
        "kind",
        "params",
        *(f"{name}\n{unit.symbol}" for name in ("analytic", "fvcore", "counter", "attention")),
    ]
    headings += [f"products with\nweights, {unit.symbol}", f"convolution\n{unit.symbol}"]
    headings += [f"{name}\n{flops.symbol}" for name in ("norms", "elementwise", *(["scans"] if scans else []))]
    rows = [
        [Text(cell, style="" if line.entry.agrees else "red") for cell in _cells(line, unit.factor, scans)]
        for line in tree_lines(ledger, depth=depth)
    ]
    names, *cells = zip(*rows, strict=True)
    columns = [(heading, list(column)) for heading, column in zip(headings, cells, strict=True)]
    print_columns("", "module", names, columns, console, justify="right")
    for text in notes(ledger):
        console.print(Text(text), soft_wrap=not console.is_terminal)


def _cells(line: Line, factor: float, scans: bool) -> Iterator[str]:
    entry = line.entry
    yield "  " * line.depth + line.label + (f"  ({line.count} identical, each:)" if line.count > 1 else "")
    yield entry.kind
    yield f"{entry.params:,}"
    for value in (entry.formula, entry.fvcore, *_counts(entry)[: None if scans else -1]):
        yield _shown(value, factor)


def _counts(entry: Entry) -> list[int | None]:
    """Return the counted MACs, and the cost of each kind; None if they were not counted."""
    return [None if entry.costs is None else getattr(entry.costs, name) for name in ("macs", *_KINDS)]


def _shown(value: int | None, factor: float) -> str:
    """Write a figure with as many digits as its unit needs; empty if the source has none."""
    if not value:
        return "" if value is None else "0"
    return f"{value / factor:,.3f}" if value >= factor / 2000 else f"{value / factor:.1e}"


def notes(ledger: Ledger) -> Iterator[str]:
    """Yield remarks that explain the figures."""
    total = ledger.total
    if frozen := total.params_total - total.params:
        yield f"{frozen:,} of {total.params_total:,} parameters are frozen; params counts the others"
    if total.sources:
        yield f"multiply-accumulates of one image: {_sources(total)}"
    if ledger.stated_scan_flops:
        yield f"scans, counted apart: {ledger.stated_scan_flops:,} FLOPs, with skip terms and gates"
    for source, reason in ledger.untraced.items():
        yield f"{source} could not trace the model: {reason}"
    yield from ledger.notes
    if ledger.uncovered:
        yield f"operators that no source covers: {', '.join(ledger.uncovered)}"
    if parting := ledger.first_parting():
        module = parting.path or "the model itself"
        yield f"the sources first disagree in {module} ({parting.kind}): {_sources(parting)}"


def _sources(entry: Entry) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in entry.sources.items())


def ledger_csv(ledger: Ledger) -> str:
    """Write one row per module, the model under ""; a figure that a source lacks is empty."""
    return csv_text(CSV_COLUMNS, map(_csv_row, ledger.entries.values()))


def _csv_row(entry: Entry) -> tuple[object, ...]:
    figures = (entry.params, entry.params_total, entry.formula, entry.fvcore, *_counts(entry))
    return (entry.path, entry.kind, *figures, str(entry.agrees).lower())
