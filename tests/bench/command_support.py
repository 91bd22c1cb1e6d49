"""The command line, called within the test's own process."""

from __future__ import annotations

from typer.testing import CliRunner

from sema_bench.cli import app


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of ``sema-bench`` with these arguments."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
