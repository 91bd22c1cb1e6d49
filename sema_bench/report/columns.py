"""Print tables that fit the terminal: leave columns out, and say which, rather than break lines.

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
Column = tuple[str, Sequence[str | Text]]


def print_columns(
    title: str,
    corner: str,
    names: Sequence[str | Text],
    columns: Sequence[Column],
    console: Console,
    *,
    justify: Literal["left", "right"],
    drop: Sequence[int] = (),
    whole: bool = False,
) -> None:
    """Print ``columns`` beside ``names``, whose heading is ``corner``, within the width of ``console``.

    If not all columns fit, long names are shortened in their middle. Then columns are left out: first those with the
    indices in ``drop``, then the others, last one first. No number is ever cut, nor a name if ``whole``.
    """
    texts = list(map(_text, names))
    columns = [(header, list(map(_text, cells))) for header, cells in columns]
    labels = [text.plain for text in texts]
    order = [*drop, *(i for i in reversed(range(len(columns))) if i not in drop)]
    shown = list(range(len(columns)))
    least = longest = max(map(cell_len, (corner, *labels)))
    if not whole:
        least = min(longest, _SHORT_NAME, max(12, 2 * console.width // 5))
    margin = 2 if fits(corner, labels, columns, console.width) else 1
    widths = [margin + column_width(column) for column in columns]
    while len(shown) > 1 and least + 1 + sum(widths[i] for i in shown) > console.width:
        shown.remove(order.pop(0))
    labels = shortened(labels, max(least, console.width - 1 - sum(widths[i] for i in shown)))
    if title:
        console.print(Text(f"\n{title}", style="italic"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, margin - 1, 0, 0), header_style="bold")
    table.add_column(corner, overflow="fold")
    for i in shown:
        table.add_column(columns[i][0], justify=justify, no_wrap=True)
    for label, text, *cells in zip(labels, texts, *(columns[i][1] for i in shown), strict=True):
        table.add_row(Text(label, style=text.style), *cells)
    console.print(table)
    if left_out := [columns[i][0].replace("\n", " ") for i in range(len(columns)) if i not in shown]:
        note = f"no room here for {', '.join(left_out)}; a wider terminal or a pipe shows all columns"
        console.print(Text(note, style="dim"))


def _text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(cell))


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
    return max(*map(cell_len, header.split("\n")), *(cell_len(str(cell)) for cell in cells))


def exponent(estimate: Estimate | None) -> str:
    """Write ``1.03 ±0.05``, or ``1.03`` alone if two decimals cannot show the interval."""
    if estimate is None:
        return EMPTY
    half = "?" if estimate.low is None else f"{estimate.half_width:.2f}"
    return f"{estimate.value:.2f}" + ("" if half == "0.00" else f" ±{half}")
