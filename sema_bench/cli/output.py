"""How commands print: a table in one piece, and the same as a file, or alone on stdout, for other programs."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sema_bench.errors import UsageError, printable

if TYPE_CHECKING:
    from rich.console import Console


def inert(text: str) -> str:
    """Return ``text`` such that GitHub, where it reads the log, takes no line of it for a command."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or not re.search("::|##\\[", text):
        return text
    token = secrets.token_hex(16)
    return f"::stop-commands::{token}\n{text.rstrip()}\n::{token}::\n"


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
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, width)
    with console.capture() as capture:
        draw(console)
    typer.echo(inert(_CONTROL.sub(_shown, capture.get())), nl=False)
    if path:
        from sema_bench.store import atomic_write

        check_output(path)
        atomic_write(Path(path), text())


def skipped(problem: str) -> None:
    """Say on stderr what could not be read and is left out."""
    typer.echo(f"left out: {printable(problem)}", err=True)


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


#: Control characters, but for line breaks and the colours that rich sets.
_CONTROL = re.compile(r"\x1b(?!\[[0-9;]*m)|[\x00-\x09\x0b-\x1a\x1c-\x1f\x7f-\x9f]")


def _shown(found: re.Match[str]) -> str:
    return printable(found[0])
