"""Make the tables of docs/reference/ from the code, so that no option, column, key or error can be out of date.

A page has ``<!-- generated: NAME -->`` where a table of ``GENERATED`` goes.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import sema
import sema_bench
from sema_bench import errors
from sema_bench.cli.commands import COMMANDS, LazyCommand
from sema_bench.report.formats import column_descriptions
from sema_bench.spec.axes import HOW, LIMITS, MEASURED, RESULTS, WHERE, Axis
from sema_bench.spec.cell import AXES
from sema_bench.spec.probes import PROBES
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.suite import MAX_CELLS, GateTable, Suite, list_suites, read_toml

_DOCS = Path(__file__).resolve().parents[1]
_PANELS = ("Arguments", MEASURED, HOW, LIMITS, RESULTS, WHERE, "Options")

#: Keys of a suite that are not axes.
SUITE_KEYS = {
    "name": "Name of the suite; the folders of its runs end in it.",
    "claim": "What the suite tests, in words.",
    "cost": "How long it takes, in words.",
    "probes": "What is measured; see [probes](#probes).",
    "requires_cuda": "Refuse to run without a CUDA device.",
    "training": "A recipe: train each model on each of `data` before testing it; see [below](#training).",
    "training_for": "Data without options → keys of the recipe to change for that data.",
    "gate": "Settings of `sema-bench gate`; see [below](#gate).",
    "evaluation_batch": "Images of one forward pass of an evaluation. It does not change the accuracy.",
    "workers": "Processes that prepare images; default: spare CPUs. It does not change the accuracy.",
    "precision": "Stop sampling when the 95 % interval of the median is within ± this share.",
    "time_limit_s": "Sample one cell for at most this long.",
    "seed": "Seed of weights, inputs and the order of cells.",
}


def pages() -> dict[str, str]:
    """Read every page of the reference, path in docs/ → Markdown, with its tables."""
    paths = (_DOCS / "reference").glob("*.md")
    return {f"reference/{path.name}": with_tables(path.read_text(encoding="utf-8")) for path in sorted(paths)}


def with_tables(markdown: str) -> str:
    """Put the generated tables into a page."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda marker: "\n".join(GENERATED[marker[1]]()), markdown)


def _commands() -> Iterator[str]:
    """Describe every command with every option."""
    entries = {name: entry for name, entry in COMMANDS.items() if entry.target}
    links = ((f"[`{name}`](#sema-bench-{name.replace(' ', '-')})", entry.help) for name, entry in entries.items())
    yield from _table(("command", "what it does"), links)
    for name, entry in entries.items():
        yield ""
        yield from _command(f"sema-bench {name}", LazyCommand(name.rpartition(" ")[2], entry).load())


def _command(path: str, command: Any) -> Iterator[str]:
    context = command.context_class(command, info_name=path)
    yield f"## {path}"
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        yield from ("", _cell(" ".join(paragraph.split())))
    yield from ("", "```text", " ".join(command.get_usage(context).removeprefix("Usage: ").split()), "```")
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) and parameter.name != "help":
            argument = parameter.param_type_name == "argument"
            panel = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
            option = f"`{record[0].strip()}`".replace("|", r"\|")
            panels.setdefault(panel, []).append((option, _cell(record[1])))
    for panel in sorted(panels, key=_PANELS.index):
        heading = panel if len(panels) > 1 else "Options"
        yield from ("", *_table((heading, "meaning"), panels[panel]))


def _columns() -> Iterator[str]:
    rows = ((f"`{name}`", kind, unit, _cell(text)) for name, (kind, unit, text) in column_descriptions().items())
    return _table(("column", "type", "unit", "what it is"), rows)


def _axes() -> Iterator[str]:
    rows = (
        (
            *(f"`{text}`" for text in (axis.name, axis.option, axis.suite_key)),
            *(_values(axis), _default(axis), _cell(axis.description)),
        )
        for axis in AXES.values()
    )
    return _table(("column", "option", "key of a suite", "values", "default", "what it is"), rows)


def _cuda_only() -> Iterator[str]:
    for axis in AXES.values():
        if axis.cuda_only:
            yield f"- `{axis.name}`, with CUDA only: {', '.join(f'`{word}`' for word in axis.cuda_only)}."


def _suite_keys() -> Iterator[tuple[str, str, str, str]]:
    axes: dict[str, Axis] = {}
    for axis in AXES.values():
        axes.setdefault(axis.suite_key, axis)  # the first of several has the help
    for key, field in Suite.model_fields.items():
        if axis := axes.get(key):
            value = "text" if key == "res" else "table" if key == "checkpoints" else _values(axis)
            if axis.crossed or key == "models":
                value = f"list of {value}" if value in ("text", "on, off") else f"list: {value}"
            yield f"`{key}`", value, _written(field), _cell(axis.help or f"{axis.description}.")
        else:
            default = "the name of the file" if key == "name" else _written(field)
            yield f"`{key}`", _kind(field.annotation), default, SUITE_KEYS[key]


def _keys_of(model: Any) -> Iterator[str]:
    """List the keys of a pydantic model whose docstring has a line for each."""
    section = inspect.cleandoc(model.__doc__).partition("Attributes:\n")[2]
    meanings = {}
    for names, text in re.findall(r"^    ([\w, ]+): ((?:.|\n        )*)", section, re.MULTILINE):
        for name in names.split(", "):
            meanings[name] = _cell(" ".join(text.split()).replace("``", "`"))
    rows = ((f"`{key}`", _written(field), meanings[key]) for key, field in model.model_fields.items())
    return _table(("key", "default", "meaning"), rows)


def _suites() -> Iterator[str]:
    bodies = {name: read_toml(path.read_text(encoding="utf-8")) for name, path in list_suites().items()}
    rows = ((f"`{name}`", _cell(body["claim"]), _cell(body["cost"])) for name, body in bodies.items())
    return _table(("suite", "claim that it tests", "cost"), rows)


def _exports(package: ModuleType) -> Iterator[str]:
    """List what mkdocstrings describes: all that a package exports, errors last."""
    for name in sorted(package.__all__, key=lambda name: name.endswith("Error")):
        yield from (f"::: {package.__name__}.{name}", "")


def _errors() -> Iterator[str]:
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.SemaBenchError)
    ]
    rows = ((f"`{kind.__name__}`", f"{kind.exit_code}", _cell((kind.__doc__ or "").splitlines()[0])) for kind in kinds)
    return _table(("exception", "code", "meaning"), rows)


#: Name of a marker → the lines that replace it.
GENERATED = {
    "commands": _commands,
    "columns": _columns,
    "axes": _axes,
    "cuda_only": _cuda_only,
    "suite_keys": lambda: _table(("key", "value", "default", "meaning"), _suite_keys()),
    "max_cells": lambda: [f"{MAX_CELLS:,}"],
    "recipe_keys": lambda: _keys_of(Recipe),
    "gate_keys": lambda: _keys_of(GateTable),
    "probes": lambda: _table(("probe", "what it measures"), ((f"`{name}`", PROBES.summary(name)) for name in PROBES)),
    "suites": _suites,
    "errors": _errors,
    "sema": lambda: _exports(sema),
    "sema_bench": lambda: _exports(sema_bench),
}


def _values(axis: Axis) -> str:
    if axis.choices:
        return ", ".join(f"`{word}`" for word in axis.choices)
    if axis.type is bool:
        return "on, off"
    if axis.type is int:
        least, most = axis.limits
        return f"{least:,} to {most:,}" + (", `max`" if axis.name == "batch" else "")
    return "text"


def _default(axis: Axis) -> str:
    if axis.name == "threads":
        return "the CPUs that this process may use"
    if axis.default is None:
        return "required"
    if axis.type is bool:
        return "on" if axis.default else "off"
    return f"`{axis.default}`" if axis.default != "" else ""


def _kind(annotation: Any) -> str:
    text = str(annotation)
    kinds = {"Recipe": "table", "GateTable": "table", "dict": "table", "list": "list of text", "bool": "true, false"}
    for word, kind in kinds.items():
        if word in text:
            return kind
    return "number" if "int" in text or "float" in text else "text"


def _written(field: Any) -> str:
    """Write the default of a key as TOML does; empty if there is none."""
    if field.is_required():
        return "required"
    if field.default in (None, "", {}):
        return ""
    values = field.default if isinstance(field.default, list | tuple) else [field.default]
    return ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in values)


def _cell(text: str) -> str:
    """Escape what Markdown would take for markup in a cell of a table; code stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", r"\|")
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(part, quote=False).replace("|", "&#124;"))
        for part in parts
    )


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (headings, ("---",) * len(headings), *rows):
        yield f"| {' | '.join(cells)} |"
