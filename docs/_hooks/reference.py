"""Write the pages under reference/ from the code, so that no option, column, key or exit code can be out of date.

``pages`` returns all of them; ``tests/bench/test_docs.py`` checks that each covers everything that it should.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
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
from sema_bench.spec.record import STATUSES
from sema_bench.spec.suite import MAX_CELLS, GateTable, Suite, list_suites, read_toml

#: These pages name everything, and would be the first answer to every search.
_LOW = ["---", "search:", "  boost: 0.3", "---", ""]
_PANELS = ("Arguments", MEASURED, HOW, LIMITS, RESULTS, WHERE, "Options")

#: Meaning of each exit code, and what to do; 128 + n is the shell's code for signal n.
EXIT_CODES = {
    errors.EXIT_OK: ("fine", "Nothing."),
    errors.EXIT_FAILED: (
        "a regression, or a cell that ended in `error` or `crashed`; `verify`, `ledger` or `train` failed",
        "Read the reason: it is in the table, in `reason` of table.csv and in the record.",
    ),
    errors.EXIT_USAGE: (
        "wrong usage, or a bad suite",
        "Correct the command; the one line on stderr names what was given and what was expected.",
    ),
    errors.EXIT_INCONCLUSIVE: (
        "inconclusive: the machine is too noisy, or the time too short, to tell",
        "Measure on a quieter machine, or for longer. With `--on-inconclusive warn` a gate exits with 0 and a warning.",
    ),
    errors.EXIT_INCOMPLETE: (
        "incomplete: a results folder cannot be read or written, a newer release wrote it, or a gate compared nothing",
        "Correct what the message names, then resume; finished cells are kept.",
    ),
    129: ("stopped by SIGHUP: the terminal was closed", "Resume: `sema-bench run --resume RUN`."),
    errors.EXIT_INTERRUPTED: ("stopped by Ctrl-C", "Resume: `sema-bench run --resume RUN`."),
    errors.EXIT_BROKEN_PIPE: ("the reader of stdout went away, as `head` does", "Nothing."),
    143: ("stopped by SIGTERM, for example by a scheduler", "Resume: `sema-bench run --resume RUN`."),
}
STATUS_MEANINGS = {
    "ok": "Every probe gave its metrics.",
    "skipped": (
        "Not started: a smaller size ran out of memory or time, the expected latency leaves no room for three samples, "
        "or a timm model does not run at this size."
    ),
    "oom": "Memory ran out: the allocator said so, or the kernel killed the worker.",
    "timeout": (
        "Not done within its wall time: 10 × `--time-limit`, at least 30 s, for inspection and for timing each. "
        "Compiled cells get 600 s more."
    ),
    "crashed": "The worker died.",
    "error": "The model or a probe raised. A MAC count that contradicts another is an `error` too.",
}
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
    """Return path → Markdown of each page that is made from the code."""
    return {
        "reference/cli.md": cli_page(),
        "reference/columns.md": columns_page(),
        "reference/axes.md": axes_page(),
        "reference/suites.md": suites_page(),
        "reference/exit-codes.md": exit_codes_page(),
        "reference/python.md": python_page(),
    }


def cli_page() -> str:
    """Write every command with every option."""
    lines = [
        *_LOW,
        "# Command line",
        "",
        "Every command and option, as `--help` prints them.",
        "",
        "```sh",
        "sema-bench --help",
        "sema-bench scale --help",
        "```",
        "",
        "Data goes to stdout; progress and warnings go to stderr.",
        "[Exit codes](exit-codes.md) say how a command ended.",
        "`sema-bench --install-completion` lets the shell complete commands, options, and names of models and runs.",
        "",
        *_table(
            ("command", "what it does"),
            ((f"[`{name}`](#sema-bench-{name.replace(' ', '-')})", entry.help) for name, entry in _commands()),
        ),
    ]
    for name, entry in _commands():
        command = LazyCommand(name.rpartition(" ")[2], entry).load()
        lines += ["", *_command(f"sema-bench {name}", command)]
    return "\n".join(lines) + "\n"


def columns_page() -> str:
    """Write every column of a table."""
    rows = ((f"`{name}`", kind, unit, _cell(text)) for name, (kind, unit, text) in column_descriptions().items())
    return "\n".join(
        [
            "# Columns",
            "",
            "What each column of `table.csv` and of `sema-bench export` holds.",
            "",
            "```sh",
            "sema-bench export 2026-11-21-cpu --columns model,height,latency_s,macs",
            "```",
            "",
            "A table has one row for each cell, failures included.",
            "Values are in SI units; the end of a column's name is its unit.",
            "What was not measured is empty, never 0.",
            "`table.csv` lacks the column `run`; the one of an older run lacks the columns that came later.",
            "",
            "Read a CSV file with its types like this:",
            "",
            "```python",
            "import pandas as pd",
            "from sema_bench.store.table import column_types",
            "",
            'table = pd.read_csv("table.csv", dtype={"run": "string", **column_types()})',
            "```",
            "",
            "In CSV files, text that a spreadsheet would run as a formula has an apostrophe before it.",
            "The columns before `status`, except `run`, are the identity of a cell.",
            "Rows compare only where all of them agree.",
            "",
            "A word in brackets is the statistic: `median` of the samples, `max`, `mean`, or `exact` for a count.",
            "Under Method, [time](../method/time.md), [MACs](../method/macs.md), [memory](../method/memory.md), "
            "[roofline and telemetry](../method/roofline.md) and [accuracy](../method/accuracy.md) have the details.",
            "",
            *_table(("column", "type", "unit", "what it is"), rows),
            "",
        ]
    )


def axes_page() -> str:
    """Write every axis of a cell."""
    return "\n".join(
        [
            *_LOW,
            "# Axes",
            "",
            "The dimensions of a cell: everything that identifies it.",
            "",
            "```sh",
            "sema-bench scale --res 224,384 --dtype float32,bfloat16 --batch 1,8 --dry-run",
            "```",
            "",
            "Two rows compare only where all axes agree.",
            "A suite lists the values of an axis under its key, and a plan crosses all lists.",
            "[Sweeps](../guide/sweeps.md#axes) says what each choice does.",
            "",
            *_table(
                ("column", "option", "key of a suite", "values", "default", "what it is"),
                (
                    (
                        f"`{axis.name}`",
                        f"`{axis.option}`",
                        f"`{axis.suite_key}`",
                        _values(axis),
                        _default(axis),
                        _cell(axis.description),
                    )
                    for axis in AXES.values()
                ),
            ),
            "",
            "An axis that does not apply to a cell has an idle value there: `tf32` applies to float32 on CUDA, "
            "`allocator` to a CPU, `checkpointing` to training steps.",
            "A choice that the device does not have is refused before anything starts:",
            "",
            *(
                f"- `{axis.name}`, with CUDA only: {', '.join(f'`{word}`' for word in axis.cuda_only)}."
                for axis in AXES.values()
                if axis.cuda_only
            ),
            "",
        ]
    )


def suites_page() -> str:
    """Write every key of a suite, of its tables, and the suites that come with the project."""
    return "\n".join(
        [
            *_LOW,
            "# Keys of a suite",
            "",
            "Every key that a suite file may have.",
            "[Suites](../guide/suites.md) shows how to write one.",
            "",
            "```sh",
            "sema-bench run suites/quick.toml --dry-run",
            "```",
            "",
            f"`models` and `res` are required; an unknown key is an error. A run has at most {MAX_CELLS:,} cells.",
            "",
            *_table(("key", "value", "default", "meaning"), _suite_rows()),
            "",
            "## Training",
            "",
            "Keys of the table `[training]`, and of `sema-bench train --set KEY=VALUE`.",
            "[Train and evaluate](../guide/train.md) shows how to use them.",
            "",
            *_table(("key", "default", "meaning"), _model_rows(Recipe)),
            "",
            "## Gate",
            "",
            "Keys of the table `[gate]`, for `sema-bench gate`.",
            "",
            *_table(("key", "default", "meaning"), _model_rows(GateTable)),
            "",
            "## Probes",
            "",
            *_table(("probe", "what it measures"), ((f"`{name}`", PROBES.summary(name)) for name in PROBES)),
            "",
            "## Suites that come with the project",
            "",
            *_table(("suite", "claim that it tests", "cost"), _bundled_suites()),
            "",
        ]
    )


def exit_codes_page() -> str:
    """Write statuses of cells, exit codes, and the errors behind them."""
    return "\n".join(
        [
            "# Statuses and exit codes",
            "",
            "How a cell ended, and how a command ended.",
            "",
            "```sh",
            "sema-bench gate run --base origin/main; echo $?",
            "```",
            "",
            "## Exit codes",
            "",
            *_table(
                ("code", "meaning", "what to do"),
                ((f"{code}", meaning, advice) for code, (meaning, advice) in sorted(EXIT_CODES.items())),
            ),
            "",
            "Cells that are `skipped`, `oom` or `timeout` are results, and the exit code stays 0.",
            "A mistake prints one line on stderr, without a traceback.",
            "",
            "## Statuses of a cell",
            "",
            "Every cell gives one record, also when it fails.",
            "",
            *_table(("status", "meaning"), ((f"`{name}`", STATUS_MEANINGS[name]) for name in STATUSES)),
            "",
            "## Errors in Python",
            "",
            "Exceptions of `sema_bench.errors`, with the exit code that each gives.",
            "",
            *_table(("exception", "code", "meaning"), _error_rows()),
            "",
        ]
    )


def python_page() -> str:
    """Write which Python names mkdocstrings describes: all that the two packages export."""
    lines = [
        *_LOW,
        "# Python API",
        "",
        "Build models and attentions, load checkpoints, and read runs from Python.",
        "",
        "```python",
        "import sema",
        "import torch",
        "",
        'model = sema.create_model("sema_tiny", attention="linear", num_classes=10)',
        "images = torch.randn(1, 3, 250, 333)  # any H×W from 32 pixels up",
        "logits = model(images)",
        "maps = model.forward_features(images)  # four stages, each (B, H, W, C)",
        "",
        "# the same function, optimized for inference",
        "fast = sema.optimize_for_inference(model.eval())",
        "",
        "# one attention, (B, H, W, C) → (B, H, W, C)",
        'mixer = sema.create_attention("sema", dim=64, num_heads=2, window_size=7)',
        "```",
        "",
        "The library needs torch alone.",
        "Another distribution on the package index, sema 0.1.3 of 2021, is imported as `sema` too.",
        "Install only one of the two.",
        "",
        "## sema",
    ]
    lines += [f"\n::: sema.{name}" for name in sorted(sema.__all__, key=lambda name: name.endswith("Error"))]
    lines += ["\n::: sema.attention.base.Attention", "\n## sema_bench"]
    exported = [f"sema_bench.{name}" for name in getattr(sema_bench, "__all__", ())]
    exported = [name for name in exported if not name.endswith("__version__")]
    exported += [
        "sema_bench.run.Run",
        "sema_bench.store.load.load_run",
        "sema_bench.store.loaded_run.LoadedRun",
        "sema_bench.spec.suite.load_suite",
        "sema_bench.store.table.records_frame",
        "sema_bench.store.table.column_types",
    ]
    return "\n".join([*lines, *(f"\n::: {name}" for name in exported)]) + "\n"


def _commands() -> Iterator[tuple[str, Any]]:
    return ((name, entry) for name, entry in COMMANDS.items() if entry.target)


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
            panels.setdefault(panel, []).append((_code(record[0].strip()), _cell(record[1])))
    for panel in sorted(panels, key=_PANELS.index):
        heading = panel if len(panels) > 1 else "Options"
        yield from ("", *_table((heading, "meaning"), panels[panel]))


def _suite_rows() -> Iterator[tuple[str, str, str, str]]:
    axes: dict[str, list[Axis]] = {}
    for axis in AXES.values():
        axes.setdefault(axis.suite_key, []).append(axis)
    for key, field in Suite.model_fields.items():
        if of_key := axes.get(key):
            axis = of_key[0]
            meaning = axis.help or f"{axis.description}."
            value = "text" if key == "res" else "table" if key == "checkpoints" else _values(axis)
            if axis.crossed or key == "models":
                value = f"list of {value}" if value in ("text", "on, off") else f"list: {value}"
            yield f"`{key}`", value, _written(field), _cell(meaning)
        else:
            default = "the name of the file" if key == "name" else _written(field)
            yield f"`{key}`", _kind(field.annotation), default, SUITE_KEYS[key]


def _model_rows(model: Any) -> Iterator[tuple[str, str, str]]:
    """Return the keys of a pydantic model whose docstring has a line for each."""
    section = inspect.cleandoc(model.__doc__).partition("Attributes:\n")[2]
    meanings = {}
    for names, text in re.findall(r"^    ([\w, ]+): ((?:.|\n        )*)", section, re.MULTILINE):
        for name in names.split(", "):
            meanings[name] = " ".join(text.split()).replace("``", "`")
    for key, field in model.model_fields.items():
        yield f"`{key}`", _written(field), _cell(meanings[key])


def _bundled_suites() -> Iterator[tuple[str, str, str]]:
    for name, path in list_suites().items():
        body = read_toml(path.read_text(encoding="utf-8"))
        yield f"`{name}`", _cell(body["claim"]), _cell(body["cost"])


def _error_rows() -> Iterator[tuple[str, str, str]]:
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.SemaBenchError):
            first = inspect.cleandoc(kind.__doc__ or "").splitlines()[0]
            yield f"`{name}`", str(kind.exit_code), _cell(first)


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
    """Return the default of a key as TOML writes it; empty where there is none."""
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == "" or value == {}:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, list | tuple):
        return ", ".join(f"`{str(each).lower() if isinstance(each, bool) else each}`" for each in value)
    return f"`{value}`"


def _code(text: str) -> str:
    """Return ``text`` as code in a cell of a table."""
    return f"`{text}`".replace("|", r"\|")


def _cell(text: str) -> str:
    """Return ``text`` for a cell of a table, with nothing in it that Markdown would take for its own."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part.replace("|", r"\|")
        if part.startswith("`")
        else re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(part, quote=False).replace("|", "&#124;"))
        for part in parts
    )


def _table(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


if __name__ == "__main__":  # print them, to look at
    for path, text in pages().items():
        print(f"=== {Path(path)}\n{text}")
