"""``sema-bench verify``: compare our counts with published ones."""

from __future__ import annotations

from typing import Annotated

import typer

from sema.models import MODELS
from sema_bench.cli.option_values import items
from sema_bench.cli.options import Csv, Json, Out
from sema_bench.cli.output import check_distinct, put_out, stdout_if
from sema_bench.cli.results import read_runs
from sema_bench.errors import EXIT_FAILED, EXIT_OK, unknown_name
from sema_bench.studies.verification import verification
from sema_bench.studies.verification.measured import pairs_of
from sema_bench.studies.verification.report import (
    pairs_csv,
    pairs_json,
    print_pairs,
    print_verdicts,
    verdicts_csv,
    verdicts_json,
)


def verify(
    models: Annotated[str | None, typer.Option(help="Only these models, comma-separated; default: all.")] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Show the top-1, top-5 and throughput of RUN beside published ones instead."),
    ] = None,
    csv: Csv = None,
    json: Json = False,
    out: Out = "results",
) -> None:
    """Check parameters and MACs of every model against published figures, with their sources.

    Exits 1 if a figure differs by more than rounding and its stated adjustment explain. With --run, count nothing: show
    measurements, and the known differences of protocol.
    """
    check_distinct(csv, stdout_if(json))
    names = items(models) if models is not None else list(MODELS)
    for name in names:
        if name not in MODELS:
            raise unknown_name("model", name, MODELS)
    figures = [figure for figure in verification.published_figures() if figure.model in names]
    if run is not None:
        (loaded,) = read_runs(out, [run])
        pairs = pairs_of(loaded, figures)
        put_out(
            lambda console: print_pairs(loaded.name, pairs, console),
            (csv, lambda: pairs_csv(pairs)),
            (stdout_if(json), lambda: pairs_json(pairs)),
        )
        return
    verdicts = [verification.verify(name, figures) for name in names]
    put_out(
        lambda console: print_verdicts(verdicts, console),
        (csv, lambda: verdicts_csv(verdicts)),
        (stdout_if(json), lambda: verdicts_json(verdicts)),
    )
    failed = any(verdict.problem or verdict.mismatches for verdict in verdicts)
    raise typer.Exit(EXIT_FAILED if failed else EXIT_OK)
