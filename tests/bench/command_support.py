"""Call the command line within the test's process."""

from __future__ import annotations

from typer.testing import CliRunner

from sema_bench.cli import app


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Run ``sema-bench`` with these arguments; return exit code, standard output and standard error."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
