"""Print tables that fit the terminal: they leave columns out, and say which, rather than break lines.

Names are ``Text``: rich would take ``sema_tiny[linear]`` for markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sema_bench.analysis.scaling import Estimate
from sema_bench.spec.units import EMPTY
from sema_bench.text.escape import printable

#: Names are shortened to this many characters before a column is left out.
_SHORT_NAME = 24

#: Header and cells, one per row.
Column = tuple[str, list[Text]]


def print_columns(
    title: str,
    corner: str,
    names: Sequence[str | Text],
    columns: Sequence[Column],
    console: Console,
    *,
    justify: Literal["left", "right"],
    drop: Sequence[int] = (),
) -> None:
    """Print columns beside names within the width of ``console``; no number is ever cut.

    Args:
        title: line above the table; "" for none.
        corner: heading of the names.
        names: one per row; long ones are shortened in their middle if not all columns fit.
        columns: heading and cells of each.
        console: the terminal or file.
        justify: alignment of the cells.
        drop: indices of the columns to leave out first; the others follow, the last one first.
    """
    labels = [str(name) if isinstance(name, Text) else printable(name) for name in names]
    order = [*drop, *(i for i in reversed(range(len(columns))) if i not in drop)]
    shown = list(range(len(columns)))
    least = min(max(map(cell_len, (corner, *labels))), _SHORT_NAME, max(12, 2 * console.width // 5))
    margin = 2 if fits(corner, labels, columns, console.width) else 1
    while len(shown) > 1 and least + 1 + sum(margin + column_width(columns[i]) for i in shown) > console.width:
        shown.remove(order.pop(0))
    room = console.width - 1 - sum(margin + column_width(columns[i]) for i in shown)
    labels = shortened(labels, max(least, room))
    if title:
        console.print(Text(f"\n{title}", style="italic"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, margin - 1, 0, 0), header_style="bold")
    table.add_column(corner, overflow="fold")
    for i in shown:
        table.add_column(columns[i][0], justify=justify, no_wrap=True)
    for label, name, *cells in zip(labels, names, *(columns[i][1] for i in shown), strict=True):
        table.add_row(Text(label, style=name.style if isinstance(name, Text) else ""), *cells)
    console.print(table)
    if left_out := [columns[i][0].replace("\n", " ") for i in range(len(columns)) if i not in shown]:
        console.print(Text(f"no room here for {', '.join(left_out)}; a wider terminal or a pipe has all", style="dim"))


def fits(corner: str, names: Sequence[str], columns: Sequence[Column], width: int, *, margin: int = 2) -> bool:
    """Check whether a table fits into ``width`` as it is."""
    return max(map(cell_len, (corner, *names))) + sum(margin + column_width(column) for column in columns) < width


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Cut the middle out of names longer than ``width``, unless two of them would look the same."""
    front = (width - 1) // 2
    cut = [f"{n[: width - 1 - front]}…{n[len(n) - front :]}" if cell_len(n) > width else n for n in names]
    return cut if len(set(cut)) == len(set(names)) else list(names)


def column_width(column: Column) -> int:
    """Return the width of ``column`` without its margin."""
    header, cells = column
    return max(*map(cell_len, header.split("\n")), *(cell_len(cell.plain) for cell in cells))


def exponent(estimate: Estimate | None) -> str:
    """Write ``1.03 ±0.05``, or ``1.03`` alone if two decimals cannot show the interval."""
    if estimate is None:
        return EMPTY
    if estimate.low is None:
        return f"{estimate.value:.2f} ±?"
    half = f"{estimate.half_width:.2f}"
    return f"{estimate.value:.2f}" if half == "0.00" else f"{estimate.value:.2f} ±{half}"
