"""``sema-bench list``: list the models, attentions, suites and probes."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from sema.attention import ATTENTIONS
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema_bench.cli.output import put_line
from sema_bench.spec.model_source import entry_points
from sema_bench.spec.probes import PROBES
from sema_bench.spec.suite import list_suites, load_suite


class Kind(str, Enum):
    """Kinds of names."""

    models = "models"
    attentions = "attentions"
    suites = "suites"
    probes = "probes"


def list_names(kind: Annotated[Kind, typer.Argument(help="Kind of names.")]) -> None:
    """List models, attentions, suites or probes, one per line."""
    rows = {
        Kind.models: _models,
        Kind.attentions: lambda: [(name, ATTENTIONS.summary(name)) for name in ATTENTIONS],
        Kind.probes: lambda: [(name, PROBES.summary(name)) for name in PROBES],
        Kind.suites: _suites,
    }[kind]()
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        put_line(f"{name:<{width}}  {summary.replace('``', '')}")
    if kind is Kind.models:
        typer.echo("models marked * take any attention: NAME[ATTENTION], e.g. sema_tiny[linear]", err=True)


def _models() -> list[tuple[str, str]]:
    installed = [(name, f"installed: {target}") for name, target in entry_points().items() if name not in MODELS]
    return installed + [(name + (" *" if name in ATTENTION_SWAPPABLE else ""), MODELS.summary(name)) for name in MODELS]


def _suites() -> list[tuple[str, str]]:
    return [(name, load_suite(str(path)).claim) for name, path in list_suites().items()]
