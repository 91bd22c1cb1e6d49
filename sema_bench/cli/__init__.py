"""The command line: parse, call one function, print, exit. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from sema_bench import __version__
from sema_bench.cli.commands import LazyGroup
from sema_bench.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    SemaBenchError,
    UsageError,
    is_out_of_memory,
)
from sema_bench.machine.interrupts import Interrupted
from sema_bench.machine.processes import let_libraries_warn
from sema_bench.text.escape import for_log

#: The parser's base exception; releases of typer define it in different modules.
_ParserError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
_LONGEST_LINE = 600


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more."""


class OneLineErrors(LazyGroup):
    """Report every mistake of the user as one line on stderr, with a documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; translate the error of a closed pipe, which typer would turn into exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as problem:
            raise _ReaderGoneError from problem

    def main(self, args: Any = None, *rest: Any, **settings: Any) -> Any:
        """Run a command and exit."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # the shell closed it
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it stays open
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an ASCII terminal gets "?", not a traceback
        if args is None:
            args = sys.argv[1:] or ["--help"]
        try:
            _refuse_empty(args)
            code = super().main(args, *rest, **{**settings, "standalone_mode": False})
            sys.stdout.flush()
        except SemaBenchError as problem:
            code = _report(str(problem), problem.exit_code)
        except _ParserError as problem:
            code = _report(problem.format_message().replace("Value error, ", ""), EXIT_USAGE)  # type: ignore[attr-defined]
        except Interrupted as stop:
            code = stop.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = EXIT_INTERRUPTED
        except (_ReaderGoneError, BrokenPipeError):
            code = EXIT_BROKEN_PIPE
        except OSError as problem:
            code = _report(f"{problem.filename or 'output'}: {problem.strerror}", EXIT_INCOMPLETE)
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
            code = _report("memory ran out; try a smaller size, batch or number of keys", EXIT_FAILED)
        for stream in (sys.stdout, sys.stderr):
            _flush_or_discard(stream)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineErrors,
    context_settings={"max_content_width": 1000},  # help is as wide as the terminal
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure how the cost and accuracy of vision attention change with image size.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sema-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``sema-bench`` command."""
    let_libraries_warn()
    app()


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse empty values: an unset shell variable leaves one, which would be ignored, or mean ``.``."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if equals and option.startswith("--") and not value.strip():
            raise UsageError(f"{option} has no value; give it one, or leave it out")
        if not argument.strip():
            option = before if before.startswith("-") else "an argument"
            raise UsageError(f"{option} is empty; give it a value, or leave it out")


def _flush_or_discard(stream: TextIO) -> None:
    """Discard what a stream cannot take: Python would try again at exit, and change the exit code."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _report(message: str, code: int) -> int:
    line = for_log(" ".join(message.split()))
    line = line[:_LONGEST_LINE] + "…" if len(line) > _LONGEST_LINE else line
    with contextlib.suppress(OSError):
        typer.echo(f"sema-bench: {line}", err=True)
    return code
