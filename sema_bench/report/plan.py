"""Show a plan: the predicted memory of its cells, which ones cannot fit, and which lane would run which group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sema_bench.analysis.conditions import Conditions, by_conditions, by_model
from sema_bench.cluster.placement import Expectation, Placed
from sema_bench.driver.memory_fit import WORKER_BYTES, Outlook
from sema_bench.report.table import print_matrix
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.record import Record
from sema_bench.text.escape import csv_text, json_text

COLUMNS = (*IDENTITY_FIELDS, "predicted_peak_bytes", "capacity_bytes", "fits", "reason")


def print_outlooks(outlooks: Sequence[Outlook], console: Console) -> None:
    """Print one matrix per set of conditions, then every cell that does not fit or was not predicted."""
    of_cell = {outlook.cell: outlook for outlook in outlooks}
    for conditions, group in by_conditions([outlook.record for outlook in outlooks]).items():
        console.print(Text(conditions.text, style="bold"))
        unit = fmt.unit_for("predicted_peak_bytes", [of_cell[record.cell].predicted_bytes or 0 for record in group])
        heading = f"peak memory, predicted ({unit.symbol}); ! does not fit"
        print_matrix(heading, group, partial(_cell, of_cell, unit), console)
        console.print()
        if (capacity := of_cell[group[0].cell].capacity_bytes) is not None:
            free, worker = fmt.size(capacity), fmt.size(WORKER_BYTES)
            console.print(Text(f"{free} are free; a worker takes {worker} of that besides its tensors", style="dim"))
        if any("forecast_device" in record.details for record in group):
            console.print(Text("predicted as on a CPU: torch sees no card here", style="dim"))
        for model, records in by_model(group).items():
            misfits = [r.cell.resolution.label for r in records if of_cell[r.cell].fits is False]
            if misfits:
                console.print(Text(f"does not fit: {model} at {', '.join(misfits)}"))
            for reason in filter(None, dict.fromkeys(of_cell[r.cell].reason for r in records)):
                console.print(Text(f"not predicted: {model}: {reason}"))


def _cell(of_cell: Mapping[Cell, Outlook], unit: fmt.Unit, record: Record) -> Text:
    outlook = of_cell[record.cell]
    if outlook.predicted_bytes is None:
        return Text(fmt.EMPTY, style="dim")
    shown = fmt.number(outlook.predicted_bytes / unit.factor)
    if outlook.cell.batch_policy == "max":
        shown += f" b{outlook.cell.batch}"
    return Text(f"{shown} !", style="red") if outlook.fits is False else Text(shown)


def outlooks_csv(outlooks: Sequence[Outlook]) -> str:
    """Write one row per cell; ``fits`` is true, false, or empty if it is unknown."""
    words = {True: "true", False: "false", None: None}
    return csv_text(COLUMNS, ([*identity, words[fits], reason] for *identity, fits, reason in map(_row, outlooks)))


def outlooks_json(outlooks: Sequence[Outlook]) -> str:
    """Write the same rows as JSON."""
    return json_text(COLUMNS, map(_row, outlooks))


def _row(outlook: Outlook) -> list[Any]:
    identity = [getattr(outlook.cell, name) for name in IDENTITY_FIELDS]
    return [*identity, outlook.predicted_bytes, outlook.capacity_bytes, outlook.fits, outlook.reason]


def print_placement(
    placed: Sequence[Placed], expected: Expectation, left_out: Mapping[Cell, str], console: Console
) -> None:
    """Print each group with its lane and time, the cells that are left out with their reasons, and the total."""
    timed = expected.scale is not None
    table = Table(box=None, pad_edge=False)
    table.add_column("lane")
    for heading in ("pixels", "cells", *(["begins", "takes"] if timed else [])):
        table.add_column(heading, justify="right")
    table.add_column("conditions")
    for each in placed:
        times = [_clock(each.begins_s), _clock(each.ends_s - each.begins_s)] if timed else []
        first = each.group[0]
        row = [each.lane, first.resolution.label, str(len(each.group)), *times, Conditions.of(first).text]
        table.add_row(*map(Text, row))
    console.print(table)
    for reason in dict.fromkeys(left_out.values()):
        cells = [f"{cell.model} at {cell.resolution.label}" for cell, why in left_out.items() if why == reason]
        console.print(Text(f"left out: {', '.join(cells)}: {reason}"))
    console.print(Text(_in_all(placed, expected) if timed else "no earlier run shows how long this takes", style="dim"))


def _in_all(placed: Sequence[Placed], expected: Expectation) -> str:
    cells = [cell for each in placed for cell in each.group]
    known = sum(cell.id in expected.seconds for cell in cells)
    last = max((each.ends_s for each in placed), default=0.0)
    total = sum(each.ends_s - each.begins_s for each in placed)
    rest = "" if known == len(cells) else ", the rest by their size"
    return (
        f"about {_clock(last)} in all, {_clock(total)} one after the other, without start-up; "
        f"{known} of {fmt.counted(len(cells), 'cell')} known from earlier runs{rest}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
