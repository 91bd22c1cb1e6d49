"""``sema-bench show``: print a run again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sema_bench.cli.options import Details, Json, Out
from sema_bench.cli.output import put_out, stdout_if
from sema_bench.cli.results import read_runs
from sema_bench.errors import UsageError
from sema_bench.report.formats import runs_frame, to_json
from sema_bench.report.summary import sampling_sentence, unfinished
from sema_bench.report.table import render
from sema_bench.store.run_folder import command_in
from sema_bench.text.plain_json import mapping


def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run in the results folder, or its folder or URL.")],
    details: Details = False,
    json: Json = False,
    out: Out = "results",
) -> None:
    """Print the summary of a run; --details adds memory, MACs, roofline, exponents and crossovers."""
    if json and details:
        raise UsageError("--json prints every value of every cell; drop --details")
    (loaded,) = read_runs(out, [run])

    def draw(console: Console) -> None:
        render(loaded.records, console, details=details)
        if sentence := sampling_sentence(mapping(loaded.metadata.get("sampling"))):
            console.print(Text(sentence))
        if loaded.path and (sentence := unfinished(loaded)):
            where = run.rpartition("/")[0] if "://" in run else out if "://" in out else str(loaded.path.parent)
            console.print(Text(f"{sentence}; resume with {command_in(where, 'run', '--resume', loaded.path.name)}"))

    put_out(draw, (stdout_if(json), lambda: to_json(runs_frame([loaded]))))
