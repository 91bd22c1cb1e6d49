"""``sema-bench baseline``: runs that are kept to be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sema_bench.cli.output import put_out, say_unreadable, skipped
from sema_bench.cli.results import LocalOut
from sema_bench.text.escape import printable

if TYPE_CHECKING:
    from rich.console import Console

baseline = typer.Typer(add_completion=False, rich_markup_mode=None, help="Keep runs to compare with.")


@baseline.command("save")
def save(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Which run to keep.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Under which name; default: the run's.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite a baseline of that name.")] = False,
    out: LocalOut = Path("results"),
) -> None:
    """Copy the records of a run to results/baselines/NAME, where no later run touches them."""
    from sema_bench.store.baselines import load_baseline, save_baseline

    path = save_baseline(out, run, name or Path(run).name, replace=replace)
    records = load_baseline(out, path.name).records
    failed = sum(record.status != "ok" for record in records)
    without = f"; {failed} of its {len(records)} cells did not end well and will not be compared" if failed else ""
    typer.echo(f"saved {path}{without}")


@baseline.command("list")
def list_baselines(out: LocalOut = Path("results")) -> None:
    """List the baselines: cells, when they were measured, and on what."""
    from rich.text import Text

    from sema_bench.store.baselines import baselines

    def draw(console: Console) -> None:
        for run in baselines(out, on_skip=skipped):
            say_unreadable([run])
            created = str(run.metadata.get("created_at", ""))
            cpu, torch = run.hardware.get("cpu", "?"), run.software.get("torch", "?")
            console.print(Text(printable(f"{run.name}  {len(run.records)} cells  {created}  {cpu}, torch {torch}")))

    put_out(draw)


@baseline.command("show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which baseline.")], out: LocalOut = Path("results")
) -> None:
    """Print the tables of a baseline."""
    from sema_bench.report.table import render
    from sema_bench.store.baselines import load_baseline

    run = load_baseline(out, name)
    say_unreadable([run])
    put_out(lambda console: render(run.records, console))
