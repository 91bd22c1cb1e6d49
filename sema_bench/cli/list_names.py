"""``sema-bench list``: list the models, attentions, suites and probes."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Annotated

import typer

from sema.attention import ATTENTIONS
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema_bench.cli.options import Json
from sema_bench.cli.output import put_line
from sema_bench.spec.model_source import entry_points
from sema_bench.spec.probes import PROBES
from sema_bench.spec.suite import list_suites, load_suite
from sema_bench.text.escape import json_text


class Kind(str, Enum):
    """Kinds of names."""

    models = "models"
    attentions = "attentions"
    suites = "suites"
    probes = "probes"


def list_names(kind: Annotated[Kind, typer.Argument(help="Kind of names.")], json: Json = False) -> None:
    """List models, attentions, suites or probes, one per line."""
    of_kind: dict[Kind, Callable[[], dict[str, str]]] = {
        Kind.models: _models,
        Kind.attentions: lambda: {name: ATTENTIONS.summary(name) for name in ATTENTIONS},
        Kind.probes: lambda: {name: PROBES.summary(name) for name in PROBES},
        Kind.suites: lambda: {name: load_suite(str(path)).claim for name, path in list_suites().items()},
    }
    summaries = {name: summary.replace("``", "") for name, summary in of_kind[kind]().items()}
    marked = ATTENTION_SWAPPABLE if kind is Kind.models else ()
    if json:
        columns = ("name", "summary", "takes_attentions")[: 3 if marked else 2]
        rows = [(name, summary, name in marked)[: len(columns)] for name, summary in summaries.items()]
        typer.echo(json_text(columns, rows), nl=False)
        return
    names = [f"{name} *" if name in marked else name for name in summaries]
    width = max(map(len, names), default=0)
    for name, summary in zip(names, summaries.values(), strict=True):
        put_line(f"{name:<{width}}  {summary}")
    if marked:
        typer.echo("models marked * take any attention: NAME[ATTENTION], e.g. sema_tiny[linear]", err=True)


def _models() -> dict[str, str]:
    installed = {name: f"installed: {target}" for name, target in entry_points().items() if name not in MODELS}
    return installed | {name: MODELS.summary(name) for name in MODELS}
