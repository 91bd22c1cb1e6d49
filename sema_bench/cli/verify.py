"""``sema-bench verify``: compare our counts with published ones."""

from __future__ import annotations

from typing import Annotated

import typer

from sema.models import MODELS
from sema_bench.cli.option_values import items
from sema_bench.cli.options import Csv, Json
from sema_bench.cli.output import check_distinct, put_out, stdout_if
from sema_bench.errors import EXIT_FAILED, EXIT_OK, unknown_name
from sema_bench.studies.verification import verification
from sema_bench.studies.verification.report import print_verdicts, verdicts_csv, verdicts_json


def verify(
    models: Annotated[str | None, typer.Option(help="Only these models, comma-separated; default: all.")] = None,
    csv: Csv = None,
    json: Json = False,
) -> None:
    """Check parameters and MACs of every model against published figures, with their sources.

    Exits 1 if a figure differs by more than rounding and its stated adjustment explain.
    """
    check_distinct(csv, stdout_if(json))
    names = items(models) if models is not None else list(MODELS)
    for name in names:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    figures = verification.published_figures()
    verdicts = [verification.verify(name, figures) for name in names]
    put_out(
        lambda console: print_verdicts(verdicts, console),
        (csv, lambda: verdicts_csv(verdicts)),
        (stdout_if(json), lambda: verdicts_json(verdicts)),
    )
    failed = any(verdict.problem or verdict.mismatches for verdict in verdicts)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)
