"""Print a table in one piece, and write it for other programs: to files, or to stdout instead of the table."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from sema_bench.errors import UsageError
from sema_bench.store.files import atomic_write
from sema_bench.text.console import UNLIMITED, SafeConsole
from sema_bench.text.escape import for_log, for_terminal

#: A terminal that claims to be narrower (COLUMNS=0) would show no table at all.
_NARROWEST = 40


def put_out(draw: Callable[[Console], None], *files: tuple[str | None, Callable[[], str]]) -> None:
    """Print what ``draw`` draws onto a console, and write the text of each of ``files`` to its path.

    A path of None is skipped; ``-`` is stdout, which then gets that text instead of the drawing.

    Raises:
        StoreError: a file cannot be written; the drawing is already printed.
    """
    if text := dict(files).get("-"):
        typer.echo(text(), nl=False)
    else:
        console = SafeConsole(highlight=False)
        room = console.width if console.is_terminal or "COLUMNS" in os.environ else UNLIMITED
        console.width = max(room, _NARROWEST)
        with console.capture() as capture:
            draw(console)
        typer.echo(for_terminal(capture.get()), nl=False)
    for path, text in files:
        if path and path != "-":
            check_output(path)
            atomic_write(Path(path), text())


def stdout_if(wanted: bool) -> str | None:
    """Return the path of stdout if output is wanted there."""
    return "-" if wanted else None


def put_line(line: str, *, err: bool = False) -> None:
    """Print one line that may hold foreign text."""
    typer.echo(for_log(line), err=err)


def check_output(path: str) -> None:
    """Refuse to overwrite the records or the description of a run."""
    target = Path(path).resolve()
    if target.name in ("records.jsonl", "run.json") and (target.parent / "run.json").exists():
        raise UsageError(f"{path} is part of a run; write to another file")


def check_distinct(*paths: str | None) -> None:
    """Refuse to write two outputs to one file, or both to stdout."""
    targets = ["-" if path == "-" else str(Path(path).resolve()) for path in paths if path]
    if len(set(targets)) != len(targets):
        raise UsageError("each output needs its own file, and only one can go to stdout (-)")
