"""How commands print: a table in one piece, and the same as a file, or alone on stdout, for other programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sema_bench.errors import UsageError
from sema_bench.text.escape import for_log, for_terminal

if TYPE_CHECKING:
    from rich.console import Console

    from sema_bench.store.history import PastRun
    from sema_bench.store.loaded_run import LoadedRun


#: A terminal that says it is narrower (COLUMNS=0) shows no table at all.
_NARROWEST = 40


def put_out(
    draw: Callable[[Console], None], *, path: str | None = None, text: Callable[[], str] = str, width: int = 0
) -> None:
    """Print what ``draw`` draws, and write ``text()`` to ``path``; a path of ``-`` is stdout, and ``text()`` alone.

    Args:
        draw: prints onto the console that it is given; at least ``width`` columns wide.
        path: where the text goes; None is nowhere.
        text: the same for other programs.
        width: columns that the table needs.

    Raises:
        StoreError: the file cannot be written; what was drawn has been printed.
    """
    if path == "-":
        typer.echo(text(), nl=False)
        return
    from sema_bench.text.console import SafeConsole

    console = SafeConsole(highlight=False)
    console.width = max(console.width, width, _NARROWEST)
    with console.capture() as capture:
        draw(console)
    typer.echo(for_terminal(capture.get()), nl=False)
    if path:
        from sema_bench.store.files import atomic_write

        check_output(path)
        atomic_write(Path(path), text())


def put_line(line: str, *, err: bool = False) -> None:
    """Print one line that may hold foreign text."""
    typer.echo(for_log(line), err=err)


def skipped(problem: str) -> None:
    """Say on stderr what could not be read and is left out."""
    put_line(f"left out: {problem}", err=True)


def say_unreadable(runs: Iterable[LoadedRun | PastRun]) -> None:
    """Say on stderr how many lines of each run are no records and are left out."""
    for run in runs:
        if run.unreadable:
            lines = "1 line" if run.unreadable == 1 else f"{run.unreadable} lines"
            left_out = "is no record and is left out" if run.unreadable == 1 else "are no records and are left out"
            put_line(f"{lines} of {run.name} {left_out}", err=True)


def check_output(path: str) -> None:
    """Refuse to write over what a run is made of.

    Raises:
        UsageError: ``path`` is a run's records or its description.
    """
    target = Path(path).resolve()
    if target.name in ("records.jsonl", "run.json") and (target.parent / "run.json").exists():
        raise UsageError(f"{path} is part of a run; write to another file")


def check_distinct(paths: Sequence[str | None]) -> None:
    """Refuse to write two things to one place.

    Raises:
        UsageError: two of ``paths`` are the same file, or stdout.
    """
    places = ["-" if path == "-" else str(Path(path).resolve()) for path in paths if path]
    if len(set(places)) != len(places):
        raise UsageError("each output goes to a file of its own, and only one of them to stdout (-)")
