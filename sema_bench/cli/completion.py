"""Complete the names of models, suites and runs in a shell, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from sema.attention import ATTENTIONS
from sema.models import ATTENTION_SWAPPABLE, MODELS
from sema_bench.spec.model_source import split_outside_brackets
from sema_bench.spec.suite import list_suites


def complete_models(incomplete: str) -> list[str]:
    """Complete the last model of a comma-separated list, or the attention in its brackets."""
    last = split_outside_brackets(incomplete)[-1]
    names = list(MODELS)
    if (model := last.partition("[")[0]) in ATTENTION_SWAPPABLE:
        names += [f"{model}[{attention}]" for attention in ATTENTIONS]
    return [incomplete.removesuffix(last) + name for name in names if name.startswith(last)]


def complete_suites(incomplete: str) -> list[str]:
    """Complete a suite that comes with the project; the shell completes files."""
    return [name for name in list_suites() if name.startswith(incomplete)]


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete a run of the results folder."""
    runs = Path(ctx.params.get("out") or "results").glob("*/run.json")
    return sorted(path.parent.name for path in runs if path.parent.name.startswith(incomplete))


def completion_of(name: str, metavar: str | None) -> Callable[..., list[str]] | None:
    """Choose the completion of a command's parameter by its name or metavar."""
    if metavar and metavar.startswith("RUN"):
        return complete_runs
    return {"model": complete_models, "models": complete_models, "suite": complete_suites}.get(name)
