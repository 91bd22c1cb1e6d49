"""Show comparisons in a terminal and as rows: ratios of cells, means of models, and cells without a ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.comparison import SPEED, Comparison, Mean, Ratio, Unmatched
from sema_bench.analysis.conditions import Conditions
from sema_bench.report.columns import Column, print_columns
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import Metric
from sema_bench.store.table import rows_frame, shared_columns
from sema_bench.text.escape import printable

COMPARISON_COLUMNS = (
    *("base", "other", "metric", *IDENTITY_FIELDS, "base_value", "other_value"),
    *("ratio", "ratio_ci_low", "ratio_ci_high", "verdict", "machine_drift", "reason"),
)
_STYLES = {"faster": "green", "better": "green", "slower": "red", "worse": "red", "unclear": "yellow"}
_NAMED = 20


def comparison_frame(comparisons: Iterable[Comparison], *, margin: float) -> pd.DataFrame:
    """Make a row for each cell of each comparison; cells without a ratio have a reason."""
    return rows_frame((row for c in comparisons for row in _rows(c, margin)), columns=COMPARISON_COLUMNS)


def without_what_is_shared(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop columns that are empty or have one value in all rows, as a paper would."""
    fixed = ("model", "height", "width", "ratio", "verdict")
    shorter: pd.DataFrame = frame.drop(columns=shared_columns(frame, (str(n) for n in frame if n not in fixed)))
    return shorter


def render_comparison(comparison: Comparison, console: Console, *, margin: float) -> None:
    """Print one comparison."""
    metric = comparison.metric
    console.print(Text(f"{comparison.other} against {comparison.base}: {metric.name}", style="bold"))
    made = "other / base" if metric.higher_is_better else "base / other"
    same = f"same: the whole 95% interval is within {margin:.1%} of 1"
    console.print(Text(f"ratio: {made}, above 1 is better; {same}"))
    groups: dict[str, list[Ratio]] = {}
    for ratio in comparison.ratios:
        one, two = Conditions.of(ratio.base.cell), Conditions.of(ratio.other.cell)
        groups.setdefault(one.text if one == two else f"{one.text}\nother: {two.text}", []).append(ratio)
    for heading, group in groups.items():
        console.print(Text(f"\n{heading}"))
        _print_ratios(group, metric, margin, console)
    if comparison.ratios:
        _print_means(comparison.means(), console)
    for line in _notes(comparison):
        console.print(Text(line))


def _print_ratios(group: Sequence[Ratio], metric: Metric, margin: float, console: Console) -> None:
    sides = [[r.base.measurements[metric.name].value, r.other.measurements[metric.name].value] for r in group]
    unit = fmt.unit_for(metric, [base for base, _ in sides])
    verdicts = [r.verdict(metric, margin) for r in group]
    columns: list[Column] = [
        (f"base, {unit.symbol}" if unit.symbol else "base", [fmt.number(base / unit.factor) for base, _ in sides]),
        ("other", [fmt.number(other / unit.factor) for _, other in sides]),
        ("ratio", [f"{r.value:.3f}" for r in group]),
        ("95%", [_interval(r) for r in group]),
        ("", [Text(verdict, style=_STYLES.get(verdict, "")) for verdict in verdicts]),
    ]
    names = [f"{r.base.cell.model} {r.base.cell.resolution.label}" for r in group]
    print_columns("", "cell", names, columns, console, justify="right", drop=(1, 0))


def _print_means(means: Sequence[Mean], console: Console) -> None:
    columns: list[Column] = [
        ("cells", [str(mean.cells) for mean in means]),
        ("geometric mean", [f"{mean.value:.3f}" for mean in means]),
        ("95%", [_interval(mean) for mean in means]),
    ]
    alike = len({mean.conditions for mean in means}) == 1
    shown = [mean.model if alike else f"{mean.model}, {mean.conditions.text}" for mean in means]
    print_columns("ratios of each model", "model", shown, columns, console, justify="right")


def _interval(ratio: Ratio | Mean) -> str:
    if ratio.ci_low is None or ratio.ci_high is None:
        return fmt.EMPTY
    return f"{ratio.ci_low:.3f} to {ratio.ci_high:.3f}"


def _notes(comparison: Comparison) -> Iterator[str]:
    if drifts := [ratio.drift for ratio in comparison.ratios if ratio.drift is not None]:
        span = f"×{min(drifts):.2f} to ×{max(drifts):.2f}"
        yield (
            f"\nspeed of the machine, {comparison.other} over {comparison.base}: {span} (yardstick); the ratios are "
            "corrected for it, and cells that are faster or slower only because of that are unclear"
        )
    if comparison.metric.name in SPEED and len(drifts) < len(comparison.ratios):
        yield "\nno common yardstick: ratios include any change of the machine's speed between the runs"
    if comparison.metric.statistic == "median":
        yield (
            "the runs were not interleaved: intervals cover the noise within each run, not differences between "
            "processes; to judge a change of code, use sema-bench gate run"
        )
        if comparison.estimated_note:
            yield f"\n{comparison.estimated_note}"
        lacking = [(ratio.base.cell, why) for ratio in comparison.ratios if (why := ratio.why_no_interval())]
        yield from _listed("unclear, without an interval", [f"{_label(cell)}: {why}" for cell, why in lacking])
    lines = [f"{model}: {printable(code)}" for model, code in comparison.other_code.items()]
    yield from _listed("built from different code in the other run", lines)
    yield from _listed("not measured in both", _reasons(comparison.unmatched_as("unmeasured")))
    refused = comparison.unmatched_as("refused")
    differing: dict[str, list[Cell]] = {}
    for each in refused:
        differing.setdefault(each.reason, []).append(each.cell)
    lines = [line for text, cells in differing.items() for line in (text, *(f"  {line}" for line in _by_model(cells)))]
    yield from _listed("not comparable, the identity differs", lines, count=len(refused))
    for verdict, name in (("new", comparison.other), ("vanished", comparison.base)):
        cells = [each.cell for each in comparison.unmatched_as(verdict)]
        yield from _listed(f"only in {name}", _by_model(cells), count=len(cells))
    for verdict in ("broken", "mended"):
        yield from _listed(verdict, _reasons(comparison.unmatched_as(verdict)))


def _reasons(cells: Iterable[Unmatched]) -> list[str]:
    return [f"{_label(each.cell)}: {printable(each.reason)}" for each in cells]


def _listed(heading: str, lines: Sequence[str], *, count: int | None = None) -> Iterator[str]:
    if lines:
        yield f"\n{heading} ({len(lines) if count is None else count})"
        yield from (f"  {line}" for line in lines[:_NAMED])
        if len(lines) > _NAMED:
            yield f"  and {len(lines) - _NAMED} more; --csv FILE has them all"


def _by_model(cells: Sequence[Cell]) -> list[str]:
    """List all sizes of each model under its conditions."""
    groups: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        models = groups.setdefault(Conditions.of(cell).text, {})
        models.setdefault(cell.model, []).append(cell.resolution.label)
    lines = []
    for conditions, models in groups.items():
        lines += [conditions, *(f"  {model} at {', '.join(labels)}" for model, labels in models.items())]
    return lines


def _label(cell: Cell) -> str:
    return f"{cell.model} {cell.resolution.label}, {Conditions.of(cell).text}"


def _rows(comparison: Comparison, margin: float) -> Iterator[dict[str, object]]:
    metric = comparison.metric
    for ratio in comparison.ratios:
        yield _row(
            comparison,
            ratio.base.cell,
            base_value=float(ratio.base.measurements[metric.name].value),
            other_value=float(ratio.other.measurements[metric.name].value),
            ratio=ratio.value,
            ratio_ci_low=ratio.ci_low,
            ratio_ci_high=ratio.ci_high,
            verdict=ratio.verdict(metric, margin),
            machine_drift=ratio.drift,
            reason=_reason(ratio, comparison),
        )
    for each in comparison.unmatched_as("refused", "new", "vanished", "unmeasured"):
        yield _row(comparison, each.cell, verdict=each.verdict, reason=each.reason or None)
    for mean in comparison.means():
        values = {**mean.conditions.as_dict(), "model": mean.model, "verdict": f"geometric mean of {mean.cells}"}
        yield _row(comparison, None, **values, ratio=mean.value, ratio_ci_low=mean.ci_low, ratio_ci_high=mean.ci_high)
    for each in comparison.unmatched_as("broken", "mended"):
        yield _row(comparison, each.cell, verdict=each.verdict, reason=each.reason)


def _reason(ratio: Ratio, comparison: Comparison) -> str | None:
    """Note other code behind the model, and the source of an estimated interval."""
    code = comparison.other_code.get(ratio.base.cell.model)
    notes = [f"other code: {code}"] if code else []
    if comparison.metric.statistic == "median":
        basis = f"interval estimated from {ratio.estimated_from}" if ratio.estimated_from else ""
        notes += filter(None, [ratio.why_no_interval() or basis])
    return "; ".join(notes) or None


def _row(comparison: Comparison, cell: Cell | None, **values: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COMPARISON_COLUMNS)
    row |= {"base": comparison.base, "other": comparison.other, "metric": comparison.metric.name}
    row |= {} if cell is None else {name: getattr(cell, name) for name in IDENTITY_FIELDS}
    return row | values
