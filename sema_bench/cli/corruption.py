"""``sema-bench corruption``: corruption errors of a run's models, relative to one of them."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.analysis.corruption import corruption_errors
from sema_bench.cli.options import Csv, Json, Out
from sema_bench.cli.output import check_distinct, put_out, stdout_if
from sema_bench.cli.results import read_runs
from sema_bench.report.corruption import corruption_frame, print_corruption
from sema_bench.report.export import to_csv_text
from sema_bench.report.formats import to_json


def corruption(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run in the results folder, or its folder or URL.")],
    reference: Annotated[
        str, typer.Option(metavar="MODEL", help="Model whose errors are 100 %; default: the first one of the run.")
    ] = "",
    csv: Csv = None,
    json: Json = False,
    out: Out = "results",
) -> None:
    """Print the mean corruption errors (mCE) of a run's models, relative to a reference, as ImageNet-C defines them.

    The run needs cells with --corrupt; relative mCE also needs those with --corrupt none.
    """
    check_distinct(csv, stdout_if(json))
    (loaded,) = read_runs(out, [run])
    errors = corruption_errors(loaded.records, reference)
    frame = corruption_frame(errors)
    put_out(
        lambda console: print_corruption(errors, console),
        (csv, lambda: to_csv_text(frame)),
        (stdout_if(json), lambda: to_json(frame)),
    )
