"""What would run where, as a table: one row per group, and when each lane should be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sema_bench.analysis.conditions import Conditions
from sema_bench.cluster.placement import Expectation, Placed
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell


def print_placement(
    placed: Sequence[Placed], expected: Expectation, left_out: Mapping[Cell, str], console: Console
) -> None:
    """Print each group with its lane and its time, what is left out, and what is expected in all.

    Args:
        placed: groups on lanes.
        expected: what the times rest on.
        left_out: cell → why it would not run.
        console: where to.
    """
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
    console.print(Text(_in_all(placed, expected) if timed else "no earlier run tells how long it takes", style="dim"))


def _in_all(placed: Sequence[Placed], expected: Expectation) -> str:
    cells = [cell for each in placed for cell in each.group]
    known = sum(cell.id in expected.seconds for cell in cells)
    last = max((each.ends_s for each in placed), default=0.0)
    total = sum(each.ends_s - each.begins_s for each in placed)
    rest = "" if known == len(cells) else ", the rest by their size"
    return (
        f"about {_clock(last)} in all, {_clock(total)} one after the other, without starting up; "
        f"{known} of {fmt.counted(len(cells), 'cell')} known from earlier runs{rest}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
