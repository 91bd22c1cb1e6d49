"""``sema-bench baseline``: keep runs to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sema_bench.cli.options import LocalOut
from sema_bench.cli.output import put_out
from sema_bench.cli.results import warn_skipped, warn_unreadable
from sema_bench.report.table import render
from sema_bench.store.baselines import baselines, load_baseline, save_baseline
from sema_bench.text.escape import printable


def save(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run to keep.")],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the baseline; default: the run's.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a baseline of that name.")] = False,
    out: LocalOut = Path("results"),
) -> None:
    """Copy the records of a run to results/baselines/NAME, where no later run touches them."""
    path = save_baseline(out, run, name or Path(run).name, replace=replace)
    records = load_baseline(out, path.name).records
    failed = sum(record.status != "ok" for record in records)
    without = f"; {failed} of its {len(records)} cells gave no result and will not be compared" if failed else ""
    typer.echo(f"saved {path}{without}")


def list_baselines(out: LocalOut = Path("results")) -> None:
    """List the baselines: cells, when they were measured, and on what."""

    def draw(console: Console) -> None:
        for run in baselines(out, on_skip=warn_skipped):
            warn_unreadable(run)
            created = str(run.metadata.get("created_at", ""))
            cpu, torch = run.hardware.get("cpu", "?"), run.software.get("torch", "?")
            console.print(Text(printable(f"{run.name}  {len(run.records)} cells  {created}  {cpu}, torch {torch}")))

    put_out(draw)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Baseline to show.")], out: LocalOut = Path("results")
) -> None:
    """Print the tables of a baseline."""
    run = load_baseline(out, name)
    warn_unreadable(run)
    put_out(lambda console: render(run.records, console, details=True))
