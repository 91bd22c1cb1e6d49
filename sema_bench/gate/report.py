"""What a gate found, as people read it: in a terminal, and as Markdown for a comment on a change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from sema_bench.gate.rule import INCOMPLETE, INCONCLUSIVE, PASS, REGRESSION, Judgement
from sema_bench.gate.run import GateResult
from sema_bench.gate.trace import Trial
from sema_bench.report.columns import print_columns
from sema_bench.report.export import to_markdown
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import Cell
from sema_bench.store.table import rows_frame
from sema_bench.text.escape import for_markdown, printable

_STYLES = {PASS: "green", REGRESSION: "bold red", INCONCLUSIVE: "yellow", INCOMPLETE: "magenta"}
MARKS = {PASS: "✅", REGRESSION: "❌", INCONCLUSIVE: "❔", INCOMPLETE: "⚠️"}
COLUMNS = ("cell", "verdict", "ratio", "95 %", "batches", "floor", "visible", "reason")


_RATIO = "Ratio: time of the head over that of the base, above 1 is slower."
_FLOOR = (
    " Floor: how much the base differs from itself. "
    "Visible: about the smallest slowdown that would have been found 19 times in 20 in such noise."
)


def label_of(cell: Cell) -> str:
    """Return the short name of a cell in a gate: model, size and what is not as usual."""
    usual = Cell(model=cell.model, height=cell.height, width=cell.width)
    words = [f"{cell.model} {cell.resolution.label}"]
    words += [f"batch {cell.batch}"] if cell.batch != usual.batch else []
    plain = ("device", "dtype", "mode", "step", "layout", "allocator")
    words += [str(getattr(cell, name)) for name in plain if getattr(cell, name) != getattr(usual, name)]
    words += [f"sdpa {cell.sdpa}"] if cell.sdpa != usual.sdpa else []
    words += [name for name in ("tf32", "checkpointing") if getattr(cell, name)]
    words += [f"{cell.threads} threads"] if cell.threads != usual.threads else []
    return printable(" ".join(words))


def legend_of(result: GateResult) -> str:
    """Return what the columns of a gate mean."""
    return _RATIO + (_FLOOR if result.evidence else "")


def print_gate(result: GateResult, console: Console) -> None:
    """Print the table of a gate and its verdict."""
    console.print(Text(f"head {result.head} against base {result.base}", style="bold"))
    judgements = result.judgements
    if judgements:
        rows = [_row(cell, judgement) for cell, judgement in judgements.items()]
        verdicts = [Text(j.verdict, style=_STYLES[j.verdict]) for j in judgements.values()]
        known = [name for name in COLUMNS[2:-1] if any(row[name] != fmt.EMPTY for row in rows)]
        columns = [(name, [Text(row[name]) for row in rows]) for name in known]
        names = [row["cell"] for row in rows]
        print_columns("", "cell", names, [("verdict", verdicts), *columns], console, justify="right")
    for line in (legend_of(result), *_notes(result)):
        console.print(Text(line))
    console.print(Text(summary_of(result), style=_STYLES[result.verdict]))


def summary_of(result: GateResult) -> str:
    """Return the verdict in one line."""
    counts = [j.verdict for j in result.judgements.values()]
    told = ", ".join(f"{counts.count(v)} {v}" for v in (PASS, REGRESSION, INCONCLUSIVE, INCOMPLETE) if v in counts)
    new = sum(j.verdict == PASS and j.ratio is None for j in result.judgements.values())
    told += f"; {new} of them new, compared with nothing" if new else ""
    return f"{result.verdict} ({told or 'no cells'}) in {result.took_s:.0f} s"


def print_trials(trials: Sequence[Trial], console: Console) -> None:
    """Print how often each verdict was given for what the head really was."""
    rows = sorted({(trial.load, trial.level) for trial in trials})
    verdicts = [[v for t in trials if (t.load, t.level) == row for v in t.verdicts.values()] for row in rows]
    names = [f"{load}: {f'{level:.0%} slower' if level else 'the same'}" for load, level in rows]
    columns = [
        (verdict, [Text(str(given.count(verdict))) for given in verdicts])
        for verdict in (PASS, REGRESSION, INCONCLUSIVE, INCOMPLETE)
    ]
    print_columns("verdicts, a cell each", "the head is", names, columns, console, justify="right")


def gate_markdown(result: GateResult) -> str:
    """Return a comment for a change: verdict, table, and what the numbers mean."""
    frame = gate_frame(result)
    lines = [
        f"### {MARKS[result.verdict]} sema-bench gate: {for_markdown(summary_of(result))}",
        "",
        f"Head {for_markdown(result.head)} against base {for_markdown(result.base)}; "
        f"slower by more than {result.settings.delta:.1%} fails{_apart(result)}.",
        "",
        to_markdown(frame),
        ("Both ran side by side, in fresh processes. " if result.evidence else "They ran one after the other. ")
        + legend_of(result),
        *(f"- {for_markdown(note)}" for note in _notes(result)),
    ]
    return "\n".join(lines) + "\n"


def _apart(result: GateResult) -> str:
    """Name the cells with a δ of their own."""
    deltas = result.settings.deltas
    return f" ({for_markdown(', '.join(f'{name}: {delta:.1%}' for name, delta in deltas.items()))})" if deltas else ""


def gate_frame(result: GateResult) -> pd.DataFrame:
    """Return a row for each cell, in words."""
    rows = [_row(cell, judgement) for cell, judgement in result.judgements.items()]
    return rows_frame(rows, columns=COLUMNS)


def _row(cell: Cell, judgement: Judgement) -> dict[str, str]:
    low, high = judgement.ci_low, judgement.ci_high
    return {
        "cell": label_of(cell),
        "verdict": judgement.verdict,
        "ratio": fmt.EMPTY if judgement.ratio is None else f"{judgement.ratio:.3f}",
        "95 %": fmt.EMPTY if low is None or high is None else f"{low:.3f}–{high:.3f}",
        "batches": str(judgement.batches),
        "floor": fmt.EMPTY if judgement.floor is None else f"{judgement.floor:.1%}",
        "visible": fmt.EMPTY if judgement.visible is None else f"{judgement.visible:.1%}",
        "reason": printable(judgement.reason),
    }


def _notes(result: GateResult) -> Iterator[str]:
    for cell, judgement in result.judgements.items():
        if judgement.reason:
            yield f"{label_of(cell)}: {printable(judgement.reason)}"
    for cell, inspection in result.inspections.items():
        told = result.judgements[cell].reason if cell in result.judgements else ""
        for arm, probe, reason in (failure for failure in inspection.failures if failure[2] not in told):
            yield f"{label_of(cell)}: {probe} not counted on the {arm}: {printable(reason)}"
    for cell, failures in result.failures.items():
        if (found := result.judgements.get(cell)) and found.ratio is not None:
            for failure in failures:
                yield f"{label_of(cell)}: tried again after the {failure.arm} failed: {printable(failure.reason)}"
    yield from (printable(note) for note in result.notes)
    if result.out_of_time:
        yield "the budget of time was used up; --budget-s gives more"
    if result.verdict == INCONCLUSIVE and result.evidence:
        yield "too noisy to tell: a quieter machine would, or a larger --delta, or more time (--budget-s)"
