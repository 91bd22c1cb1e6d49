"""``sema-bench env``: describe the machine and the software that cells would be measured with."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from sema_bench.cli.output import put_line
from sema_bench.machine.environment import capture


def env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Describe the machine and the software that cells would be measured with."""
    environment = capture()
    sections = {name: getattr(environment, name) for name in ("hardware", "software", "context")}
    if as_json:
        typer.echo(json.dumps({"fingerprint": environment.fingerprint, **sections}, indent=2))
        return
    typer.echo(f"fingerprint  {environment.fingerprint}")
    for name, facts in sections.items():
        typer.echo(name)
        for key, value in facts.items():
            shown = json.dumps(value) if isinstance(value, list | dict) else value
            put_line(f"  {key:<24}  {'–' if shown in (None, '') else shown}")
