"""Show the outcome of a gate: in a terminal, and as Markdown for a comment on a change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import short_name
from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult
from sema_bench.gate.trace import Trial
from sema_bench.report.columns import print_columns
from sema_bench.report.export import to_markdown
from sema_bench.spec.cell import Cell
from sema_bench.spec.units import EMPTY, duration
from sema_bench.store.table import rows_frame
from sema_bench.text.escape import for_markdown, printable

_STYLES = {PASS: "green", REGRESSION: "bold red", INCONCLUSIVE: "yellow", INCOMPLETE: "magenta"}
_MARKS = {PASS: "✅", REGRESSION: "❌", INCONCLUSIVE: "❔", INCOMPLETE: "⚠️"}
_COLUMNS = ("cell", "verdict", "ratio", "95%", "batches", "spread", "visible", "reason")
_RATIO = "Ratio: time of the head over that of the base, above 1 is slower."
_SPREAD = (
    " Spread: how far batches of a cell lie apart (standard deviation). Visible: about the smallest slowdown that this "
    "gate would see 19 times in 20; a smaller one may pass."
)
_CHANCE = " Processes of the same code differ by a few percent from start to start; the interval lacks that."


def label_of(cell: Cell) -> str:
    """Return the short name of a cell in a gate: model, size and the settings that are not at their defaults."""
    return printable(f"{cell.model} {cell.resolution.label} {short_name(cell)}".rstrip())


def print_gate(result: GateResult, console: Console) -> None:
    """Print the table of a gate and its verdict."""
    console.print(Text(f"head {result.head} against base {result.base}", style="bold"))
    if rows := _rows(result):
        columns = [("verdict", [Text(row["verdict"], style=_STYLES[row["verdict"]]) for row in rows])]
        known = [name for name in _COLUMNS[2:-1] if any(row[name] != EMPTY for row in rows)]
        columns += [(name, [Text(row[name]) for row in rows]) for name in known]
        print_columns("", "cell", [row["cell"] for row in rows], columns, console, justify="right")
    for line in (_legend(result), *_notes(result)):
        console.print(Text(line))
    console.print(Text(summary_of(result), style=_STYLES[result.verdict]))


def summary_of(result: GateResult) -> str:
    """Return the verdict in one line."""
    verdicts = [j.verdict for j in result.judgements.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in _STYLES if v in verdicts) or "no cells"
    new = sum(j.verdict == PASS and j.ratio is None for j in result.judgements.values())
    counts += f"; {new} of them new, compared with nothing" if new else ""
    return f"{result.verdict} ({counts})" + (f" in {duration(result.took_s)}" if result.took_s else "")


def print_trials(trials: Sequence[Trial], console: Console) -> None:
    """Print how often each verdict was given for each true state of the head."""
    groups = sorted({(trial.load, trial.level) for trial in trials})
    verdicts = [[v for t in trials if (t.load, t.level) == group for v in t.verdicts.values()] for group in groups]
    names = [f"{load}: {f'{level:.0%} slower' if level else 'the same'}" for load, level in groups]
    columns = [(verdict, [Text(str(given.count(verdict))) for given in verdicts]) for verdict in _STYLES]
    print_columns("verdicts, a cell each", "the head is", names, columns, console, justify="right")


def gate_markdown(result: GateResult) -> str:
    """Write a comment for a change: verdict, table, and what the numbers mean."""
    deltas = ", ".join(f"{name}: {delta:.1%}" for name, delta in result.settings.deltas.items())
    lines = [
        f"### {_MARKS[result.verdict]} sema-bench gate: {for_markdown(summary_of(result))}",
        "",
        f"Head {for_markdown(result.head)} against base {for_markdown(result.base)}; slower by more than "
        f"{result.settings.delta:.1%} fails{f' ({for_markdown(deltas)})' if deltas else ''}.",
        "",
        to_markdown(rows_frame(_rows(result), columns=_COLUMNS)),
        ("Both ran side by side, in fresh processes. " if result.evidence else "They ran one after the other. ")
        + _legend(result),
        *(f"- {for_markdown(note)}" for note in _notes(result)),
    ]
    return "\n".join(lines) + "\n"


def _legend(result: GateResult) -> str:
    return _RATIO + (_SPREAD if result.evidence else _CHANCE)


def _rows(result: GateResult) -> list[dict[str, str]]:
    return [dict(zip(_COLUMNS, _row(cell, each), strict=True)) for cell, each in result.judgements.items()]


def _row(cell: Cell, judgement: Judgement) -> tuple[str, ...]:
    low, high = judgement.ci_low, judgement.ci_high
    return (
        label_of(cell),
        judgement.verdict,
        EMPTY if judgement.ratio is None else f"{judgement.ratio:.3f}",
        EMPTY if low is None or high is None else f"{low:.3f}–{high:.3f}",
        str(judgement.batches),
        EMPTY if judgement.spread is None else f"{judgement.spread:.1%}",
        EMPTY if judgement.visible is None else f"{judgement.visible:.1%}",
        printable(judgement.reason),
    )


def _notes(result: GateResult) -> Iterator[str]:
    judgements = result.judgements
    for cell, judgement in judgements.items():
        if judgement.reason:
            yield f"{label_of(cell)}: {printable(judgement.reason)}"
    for cell, inspection in result.inspections.items():
        for arm, probe, reason in inspection.failures:
            if reason not in judgements[cell].reason:
                yield f"{label_of(cell)}: {probe} not counted on the {arm}: {printable(reason)}"
    for cell, failures in result.failures.items():
        for failure in failures:
            if judgements[cell].ratio is not None:
                yield f"{label_of(cell)}: tried again after the {failure.arm} failed: {printable(failure.reason)}"
    yield from map(printable, result.notes)
    if result.out_of_time:
        yield "the budget of time was used up; --budget-s gives more"
    if result.verdict == INCONCLUSIVE and result.evidence:
        yield "too noisy to tell; try a quieter machine, a larger --delta or more time (--budget-s)"
