"""How commands print: a table in one piece, and the same as a file, or alone on stdout, for other programs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console


def inert(text: str) -> str:
    """Return ``text`` such that GitHub, where it reads the log, takes no line of it for a command."""
    if os.environ.get("GITHUB_ACTIONS") != "true" or "::" not in text:
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
    typer.echo(inert(capture.get()), nl=False)
    if path:
        from sema_bench.store import atomic_write

        atomic_write(Path(path), text())
