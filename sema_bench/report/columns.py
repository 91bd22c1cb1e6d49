"""A table whose columns go on below where the terminal is narrow.

Names are put in as ``Text``: rich would take ``sema_tiny[linear]`` for markup.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sema_bench.analysis.scaling import Estimate
from sema_bench.spec.units import EMPTY
from sema_bench.text.escape import printable

#: Longest name that is not folded where the width is short.
_NAME_WIDTH = 32

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
) -> None:
    """Print the columns beside the names, as several tables where the width is short: no number is ever cut.

    Args:
        title: what stands above; "" is nothing.
        corner: heading of the names.
        names: one per row; a long one is folded where all would not fit side by side.
        columns: heading and cells of each.
        console: where to.
        justify: how cells lie in their column.
    """
    names = [name if isinstance(name, Text) else printable(name) for name in names]
    name_width = max(cell_len(str(name)) for name in (corner, *names))
    if name_width + 1 + sum(map(column_width, columns)) > console.width:
        name_width = min(name_width, _NAME_WIDTH, max(12, 2 * console.width // 5))
    for number, part in enumerate(_split(columns, console.width - name_width - 1)):
        if title or number:
            console.print(Text(f"\n{title or 'the same'}{', continued' if number else ''}", style="italic"))
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        table.add_column(corner, overflow="fold", width=name_width)
        for header, _ in part:
            table.add_column(header, justify=justify, no_wrap=True)
        for name, *cells in zip(names, *(cells for _, cells in part), strict=True):
            table.add_row(name if isinstance(name, Text) else Text(name), *cells)
        console.print(table)


def _split(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    part: list[Column] = []
    used = 0
    for column in columns:
        need = column_width(column)
        if part and used + need > width:
            yield part
            part, used = [], 0
        part.append(column)
        used += need
    yield part


def column_width(column: Column) -> int:
    """Return what ``column`` takes of the width."""
    header, cells = column
    return 2 + max(
        *map(cell_len, header.split("\n")), *(cell_len(line) for cell in cells for line in cell.plain.split("\n"))
    )


def exponent(estimate: Estimate | None, *, separator: str = " ") -> str:
    """Return ``1.03 [0.98, 1.08]``, or ``1.03`` alone where the interval is narrower than two decimals show."""
    if estimate is None:
        return EMPTY
    value, bounds = f"{estimate.value:.2f}", (estimate.low, estimate.high)
    if None in bounds:
        return f"{value}{separator}[?]"
    low, high = (f"{bound:.2f}" for bound in bounds if bound is not None)
    return value if low == value == high else f"{value}{separator}[{low}, {high}]"
