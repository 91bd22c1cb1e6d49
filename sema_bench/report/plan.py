"""A plan with what its cells will need: a matrix of predicted memory, and what cannot fit."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import by_conditions, by_model
from sema_bench.driver.memory_fit import Outlook
from sema_bench.machine.device_memory import WORKER_BYTES
from sema_bench.report.table import print_matrix
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.text.escape import csv_text

CSV_COLUMNS = (*IDENTITY_FIELDS, "predicted_peak_bytes", "capacity_bytes", "fits", "reason")


def print_outlooks(outlooks: Sequence[Outlook], console: Console) -> None:
    """Print one matrix per conditions, then every cell that does not fit and every one that was not predicted."""
    of_cell = {outlook.cell: outlook for outlook in outlooks}
    for conditions, group in by_conditions([outlook.record for outlook in outlooks]).items():
        console.print(Text(conditions.text, style="bold"))
        unit = fmt.unit_for(
            "predicted_peak_bytes", [o.predicted_bytes for r in group if (o := of_cell[r.cell]).predicted_bytes]
        )
        print_matrix(
            f"peak memory, predicted ({unit.symbol}); ! does not fit",
            group,
            lambda record, unit=unit: _cell(of_cell[record.cell], unit),  # type: ignore[misc]
            console,
        )
        console.print()
        capacity = of_cell[group[0].cell].capacity_bytes
        if capacity is not None:
            free, worker = fmt.size(capacity), fmt.size(WORKER_BYTES)
            console.print(Text(f"{free} are free, of which a worker takes {worker} beside its tensors", style="dim"))
        for model, records in by_model(group).items():
            misfits = [r.cell.resolution.label for r in records if of_cell[r.cell].fits is False]
            if misfits:
                console.print(Text(f"does not fit: {model} at {', '.join(misfits)}"))
            for reason in dict.fromkeys(of_cell[r.cell].reason for r in records):
                if reason:
                    console.print(Text(f"not predicted: {model}: {reason}"))


def _cell(outlook: Outlook, unit: fmt.Unit) -> Text:
    if outlook.predicted_bytes is None:
        return Text(fmt.EMPTY, style="dim")
    shown = fmt.number(outlook.predicted_bytes / unit.factor)
    if outlook.cell.batch_policy == "max":
        shown += f" b{outlook.cell.batch}"
    return Text(f"{shown} !", style="red") if outlook.fits is False else Text(shown)


def outlooks_csv(outlooks: Sequence[Outlook]) -> str:
    """Return one row per cell; ``fits`` is true, false, or empty where nobody can tell."""
    return csv_text(CSV_COLUMNS, map(_csv_row, outlooks))


def _csv_row(outlook: Outlook) -> list[object]:
    identity = [getattr(outlook.cell, name) for name in IDENTITY_FIELDS]
    fits = "" if outlook.fits is None else str(outlook.fits).lower()
    return [*identity, outlook.predicted_bytes, outlook.capacity_bytes, fits, outlook.reason]
