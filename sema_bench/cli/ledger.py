"""``sema-bench ledger``: count the multiply-accumulates of a model by module and by source."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.option_values import one_size
from sema_bench.cli.options import Csv
from sema_bench.cli.output import put_out
from sema_bench.errors import EXIT_FAILED, EXIT_OK, ProbeError, UsageError, unknown_name
from sema_bench.report.ledger import ledger_csv, print_ledger
from sema_bench.spec.cell import Cell, check_model
from sema_bench.spec.resolution import USUAL, USUAL_SIZES


def ledger(
    model: Annotated[str, typer.Argument(help="A model, as in --models: sema_tiny[linear], timm:NAME, file.py:build.")],
    res: Annotated[
        str,
        typer.Option("--res", metavar="SIZE", help="One resolution, 224 or 512x768; default: that of papers."),
    ] = USUAL,
    depth: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Levels of modules to show; default: all.")
    ] = None,
    task: Annotated[str, typer.Option(help=f"Network around the model: {', '.join(USUAL_SIZES)}.")] = "classify",
    csv: Csv = None,
) -> None:
    """Count the MACs of one image by module: by formula, by fvcore and by torch's counter, split by kind of operator.

    Exits 1 if the sources differ by more than 0.5 %, and names the first module where they do.
    """
    if task not in USUAL_SIZES:
        raise unknown_name("task", task, USUAL_SIZES)
    size = one_size(res, "ledger takes one size", task=task)
    cell = Cell(model=check_model(model), height=size.height, width=size.width, task=task)
    from sema_bench.worker import build_model, workload  # loads torch

    try:
        counted = workload.Workload(cell).ledger()
    except (ProbeError, build_model.SizeNotSupportedError, ValueError, TypeError) as problem:
        raise UsageError(f"{cell.model} at {cell.resolution.label}: {problem}") from None
    put_out(lambda console: print_ledger(counted, console, depth=depth), (csv, lambda: ledger_csv(counted)))
    raise typer.Exit(EXIT_FAILED if counted.first_parting() or not counted.total.sources else EXIT_OK)
