"""``sema-bench ledger``: where a model's multiply-accumulates are, by module and by source."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.output import put_out
from sema_bench.errors import EXIT_FAILED, EXIT_OK, UsageError
from sema_bench.spec.cell import Cell
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import check_model


def ledger(
    model: Annotated[str, typer.Argument(help="A model, as in --models: sema_tiny[linear], timm:NAME, file.py:build.")],
    res: Annotated[str, typer.Option("--res", metavar="SIZE", help="One resolution, 224 or 512x768.")] = "224",
    depth: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Levels of modules to show; default: all.")
    ] = None,
    csv: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write a CSV of all modules; - is stdout, alone.")
    ] = None,
) -> None:
    """Count one image by module: by formula, by fvcore and by torch's counter, split by kind of operator.

    Exits 1 if the sources differ by more than 0.5 %, and names the first module in which they part.
    """
    sizes = parse_resolutions(res)
    if len(sizes) != 1:
        raise UsageError(f"--res: a ledger is of one size; got {len(sizes)} ({res!r})")
    cell = Cell(model=check_model(model), height=sizes[0].height, width=sizes[0].width)
    from sema_bench.errors import ProbeError
    from sema_bench.report.ledger import ledger_csv, print_ledger
    from sema_bench.worker.foreign_model import SizeNotSupportedError
    from sema_bench.worker.workload import Workload

    try:
        counted = Workload(cell).ledger()
    except (ProbeError, SizeNotSupportedError, ValueError, TypeError) as problem:
        raise UsageError(f"{cell.model} at {cell.resolution.label}: {problem}") from None
    put_out(lambda console: print_ledger(counted, console, depth=depth), path=csv, text=lambda: ledger_csv(counted))
    raise typer.Exit(EXIT_FAILED if counted.first_parting() or not counted.total.sources else EXIT_OK)
