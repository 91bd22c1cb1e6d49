"""The command line: parse, call one function, print, exit. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from sema_bench import __version__
from sema_bench.cli import inspect, measure
from sema_bench.cli.baseline import baseline
from sema_bench.cli.compare import compare
from sema_bench.cli.dispersion import dispersion
from sema_bench.cli.evaluate import evaluate
from sema_bench.cli.export import export
from sema_bench.cli.gate import gate
from sema_bench.cli.history import history
from sema_bench.cli.ledger import ledger
from sema_bench.cli.maps import maps
from sema_bench.cli.plan import plan
from sema_bench.cli.report import report
from sema_bench.cli.selftest import selftest
from sema_bench.cli.train import train
from sema_bench.cli.verify import verify
from sema_bench.errors import (
    EXIT_BROKEN_PIPE,
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    SemaBenchError,
    UsageError,
)
from sema_bench.machine.interrupts import Interrupted
from sema_bench.machine.processes import let_libraries_warn
from sema_bench.text.escape import for_log

#: The parser's base exception; where it is defined differs between releases of typer.
_ParserError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


_LONGEST_LINE = 600


class _ReaderGoneError(Exception):
    """Nobody reads stdout any more."""


class OneLineErrors(TyperGroup):
    """Reports every mistake of the user as one line on stderr, with a documented exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; that nobody reads its output any more is told in a way that typer leaves alone."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as problem:
            raise _ReaderGoneError from problem

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command and exit."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # the shell closed it
                setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it stays open
        kwargs["standalone_mode"] = False
        if len(sys.argv) == 1 and not args and kwargs.get("args") is None:
            kwargs["args"] = ["--help"]
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # an ASCII terminal gets "?", not a traceback
        given = args[0] if args else kwargs.get("args")
        try:
            _refuse_empty(sys.argv[1:] if given is None else given)
            code = super().main(*args, **kwargs)
            sys.stdout.flush()
        except SemaBenchError as problem:
            code = _report(str(problem), problem.exit_code)
        except _ParserError as problem:
            code = _report(problem.format_message().replace("Value error, ", ""), EXIT_USAGE)  # type: ignore[attr-defined]
        except Interrupted as stop:
            code = stop.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = EXIT_INTERRUPTED
        except (_ReaderGoneError, BrokenPipeError):  # the reader of stdout has gone; what it wanted, it has
            code = EXIT_BROKEN_PIPE
        except OSError as problem:
            code = _report(f"{problem.filename or 'output'}: {problem.strerror}", EXIT_INCOMPLETE)
        except (MemoryError, RuntimeError) as problem:
            if not _is_out_of_memory(problem):
                raise
            code = _report("memory ran out; try a smaller size, batch or number of keys", EXIT_FAILED)
        for stream in (sys.stdout, sys.stderr):
            _flush_or_discard(stream)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure how cost and quality of vision attentions grow with image size.",
)
#: Name → what it calls, and its line in the list of commands.
_COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "scale": (measure.scale, "Sweep models over resolutions: tables, plots, exponents."),
    "run": (measure.run, "Run a suite, a TOML file, or resume a run."),
    "train": (train, "Train a model."),
    "evaluate": (evaluate, "Test a checkpoint on labelled images at each resolution."),
    "dispersion": (dispersion, "Do attention coefficients vanish as the image grows?"),
    "maps": (maps, "Draw what one token attends to, and its receptive field."),
    "list": (inspect.list_names, "List models, attentions, suites or probes."),
    "env": (inspect.env, "Describe this machine and its software."),
    "plan": (plan, "Print the cells of a run, the memory each needs, what fits."),
    "verify": (verify, "Check parameters and MACs against published figures."),
    "ledger": (ledger, "Count one image module by module, from three sources."),
    "selftest": (selftest, "Measure how precise measurements are on this machine."),
    "compare": (compare, "Compare runs cell by cell, with 95 % intervals."),
    "gate": (gate, "Fail when a change made a model slower, and only then."),
    "export": (export, "Write runs as CSV, JSON, Markdown, LaTeX, Parquet, …."),
    "report": (report, "Write one page that works offline: plots and tables."),
    "history": (history, "List all runs, or follow one cell through them."),
}
for _name, (_function, _line) in _COMMANDS.items():
    app.command(_name, short_help=_line)(_function)
app.add_typer(baseline, name="baseline")


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
    """Refuse values that are empty: what an unset variable of a script leaves would be ignored, or mean ``.``.

    Raises:
        UsageError: see there.
    """
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if equals and option.startswith("--") and not value.strip():
            raise UsageError(f"{option} has no value; give it one, or leave it out")
        if not argument.strip():
            what = before if before.startswith("-") else "an argument"
            raise UsageError(f"{what} is empty; give it a value, or leave it out")


def _flush_or_discard(stream: TextIO) -> None:
    """Drop what a stream cannot take: Python would try once more at its end, and exit with a code of its own."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_out_of_memory(problem: BaseException) -> bool:
    from sema_bench.worker.workload import is_out_of_memory

    return isinstance(problem, MemoryError) or ("torch" in sys.modules and is_out_of_memory(problem))


def _report(message: str, code: int) -> int:
    line = for_log(" ".join(message.split()))
    if len(line) > _LONGEST_LINE:
        line = line[:_LONGEST_LINE] + "…"
    with contextlib.suppress(OSError):
        typer.echo(f"sema-bench: {line}", err=True)
    return code
