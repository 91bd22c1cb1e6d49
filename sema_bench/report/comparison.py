"""Show comparisons in a terminal and as rows: ratios of cells, means of models, and cells without a ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.comparison import SPEED, Comparison, Mean, Ratio
from sema_bench.analysis.conditions import Conditions
from sema_bench.report.columns import print_columns
from sema_bench.spec import units as fmt
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
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
    """Drop columns that are empty or have one value in all rows, as in a paper."""
    fixed = ("model", "height", "width", "ratio", "verdict")
    shared = shared_columns(frame, (str(name) for name in frame if name not in fixed))
    shorter: pd.DataFrame = frame.drop(columns=shared)
    return shorter


def render_comparison(comparison: Comparison, console: Console, *, margin: float) -> None:
    """Print one comparison."""
    metric = comparison.metric
    console.print(Text(f"{comparison.other} against {comparison.base}: {metric.name}", style="bold"))
    made = "other / base" if metric.higher_is_better else "base / other"
    same = f"same: the whole 95 % interval is within {margin:.1%} of 1"
    console.print(Text(f"ratio: {made}, above 1 is better; {same}"))
    groups: dict[tuple[Conditions, Conditions], list[Ratio]] = {}
    for ratio in comparison.ratios:
        sides = (Conditions.of(ratio.base.cell), Conditions.of(ratio.other.cell))
        groups.setdefault(sides, []).append(ratio)
    for (conditions, others), group in groups.items():
        against = "" if conditions == others else f"\nother: {others.text}"
        console.print(Text(f"\n{conditions.text}{against}"))
        _print_ratios(group, comparison, margin, console)
    if comparison.ratios:
        _print_means(comparison.means(), console)
    for line in _notes(comparison):
        console.print(Text(line))


def _print_ratios(group: Sequence[Ratio], comparison: Comparison, margin: float, console: Console) -> None:
    metric = comparison.metric
    unit = fmt.unit_for(metric, [r.base.measurements[metric.name].value for r in group])
    names = [f"{r.base.cell.model} {r.base.cell.resolution.label}" for r in group]
    values = [
        [Text(fmt.number(side.measurements[metric.name].value / unit.factor)) for side in sides]
        for sides in zip(*((r.base, r.other) for r in group), strict=True)
    ]
    verdicts = [r.verdict(metric, margin) for r in group]
    columns = [
        (f"base, {unit.symbol}" if unit.symbol else "base", values[0]),
        ("other", values[1]),
        ("ratio", [Text(f"{r.value:.3f}") for r in group]),
        ("95 %", [Text(_interval(r)) for r in group]),
        ("", [Text(verdict, style=_STYLES.get(verdict, "")) for verdict in verdicts]),
    ]
    print_columns("", "cell", names, columns, console, justify="right", drop=(1, 0))


def _print_means(means: Sequence[Mean], console: Console) -> None:
    columns = [
        ("cells", [Text(str(mean.cells)) for mean in means]),
        ("geometric mean", [Text(f"{mean.value:.3f}") for mean in means]),
        ("95 %", [Text(_interval(mean)) for mean in means]),
    ]
    shown = [mean.model if len(_conditions(means)) == 1 else f"{mean.model}, {mean.conditions.text}" for mean in means]
    print_columns("ratios of each model", "model", shown, columns, console, justify="right")


def _conditions(means: Sequence[Mean]) -> set[Conditions]:
    return {mean.conditions for mean in means}


def _interval(ratio: Ratio | Mean) -> str:
    if ratio.ci_low is None or ratio.ci_high is None:
        return fmt.EMPTY
    return f"{ratio.ci_low:.3f} to {ratio.ci_high:.3f}"


def _notes(comparison: Comparison) -> Iterator[str]:
    drifts = [ratio.drift for ratio in comparison.ratios if ratio.drift is not None]
    if drifts:
        span = f"×{min(drifts):.2f} to ×{max(drifts):.2f}"
        yield (
            f"\nspeed of the machine, {comparison.other} over {comparison.base}: {span} (yardstick); it is taken out "
            "of the ratios, and unclear is also what would be faster or slower with it taken out only"
        )
    if comparison.metric.name in SPEED and len(drifts) < len(comparison.ratios):
        yield "\nwhere the machine changed its speed between the runs, that is part of the ratios (no common yardstick)"
    if comparison.metric.statistic == "median":
        yield (
            "two runs, one after the other: an interval knows the noise within each of them, and not the luck that a "
            "process keeps for its life; for a verdict on a change of code use sema-bench gate run"
        )
    if comparison.metric.statistic == "median":
        if comparison.estimated_note:
            yield f"\n{comparison.estimated_note}"
        lacking = [(ratio.base.cell, why) for ratio in comparison.ratios if (why := ratio.why_no_interval())]
        yield from _listed("unclear, without an interval", [f"{_label(cell)}: {why}" for cell, why in lacking])
    lines = [f"{model}: {printable(code)}" for model, code in comparison.other_code.items()]
    yield from _listed("built by other code in the other run", lines)
    lines = [f"{_label(cell)}: {printable(why)}" for cell, why in comparison.unmeasured]
    yield from _listed("not measured in both", lines)
    differing: dict[str, list[Cell]] = {}
    for refused in comparison.refused:
        differing.setdefault(refused.text, []).append(refused.cell)
    lines = [line for text, cells in differing.items() for line in (text, *(f"  {line}" for line in _by_model(cells)))]
    yield from _listed("refused, the identity differs", lines, count=len(comparison.refused))
    for name, cells in ((comparison.other, comparison.new), (comparison.base, comparison.vanished)):
        yield from _listed(f"only in {name}", _by_model(cells), count=len(cells))
    for word, pairs, which in (("broken", comparison.broken, 1), ("mended", comparison.mended, 0)):
        lines = [f"{_label(pair[0].cell)}: {pair[which].status}, {printable(pair[which].reason)}" for pair in pairs]
        yield from _listed(word, lines)


def _listed(heading: str, lines: Sequence[str], *, count: int | None = None) -> Iterator[str]:
    if lines:
        yield f"\n{heading} ({len(lines) if count is None else count})"
        yield from (f"  {line}" for line in lines[:_NAMED])
        if len(lines) > _NAMED:
            yield f"  and {len(lines) - _NAMED} more; --csv FILE has them all"


def _by_model(cells: Sequence[Cell]) -> list[str]:
    """List all sizes of each model below its conditions."""
    groups: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        models = groups.setdefault(Conditions.of(cell).text, {})
        models.setdefault(cell.model, []).append(cell.resolution.label)
    return [
        line
        for conditions, models in groups.items()
        for line in (conditions, *(f"  {model} at {', '.join(labels)}" for model, labels in models.items()))
    ]


def _label(cell: Cell) -> str:
    return f"{cell.model} {cell.resolution.label}, {Conditions.of(cell).text}"


def _rows(comparison: Comparison, margin: float) -> Iterator[dict[str, object]]:
    metric = comparison.metric
    for ratio in comparison.ratios:
        yield _row(
            comparison,
            ratio.base.cell,
            base_value=ratio.base.measurements[metric.name].value,
            other_value=ratio.other.measurements[metric.name].value,
            ratio=ratio.value,
            ratio_ci_low=ratio.ci_low,
            ratio_ci_high=ratio.ci_high,
            verdict=ratio.verdict(metric, margin),
            machine_drift=ratio.drift,
            reason=_reason(ratio, comparison),
        )
    for refused in comparison.refused:
        yield _row(comparison, refused.cell, verdict="refused", reason=refused.text)
    for word, cells in (("new", comparison.new), ("vanished", comparison.vanished)):
        for cell in cells:
            yield _row(comparison, cell, verdict=word)
    for cell, why in comparison.unmeasured:
        yield _row(comparison, cell, verdict="unmeasured", reason=why)
    for mean in comparison.means():
        yield _row_of_mean(comparison, mean)
    for word, pairs in (("broken", comparison.broken), ("mended", comparison.mended)):
        for pair in pairs:
            failed = pair[1] if word == "broken" else pair[0]
            yield _row(comparison, pair[0].cell, verdict=word, reason=f"{failed.status}: {failed.reason}")


def _reason(ratio: Ratio, comparison: Comparison) -> str | None:
    """Note other code behind the model, and the source of an estimated interval."""
    code = comparison.other_code.get(ratio.base.cell.model)
    notes = [f"other code: {code}"] if code else []
    if comparison.metric.statistic == "median":
        basis = f"interval estimated from {ratio.estimated_from}" if ratio.estimated_from else ""
        notes += filter(None, [ratio.why_no_interval() or basis])
    return "; ".join(notes) or None


def _row_of_mean(comparison: Comparison, mean: Mean) -> dict[str, object]:
    """Make a row without a size of the geometric mean of a model."""
    row: dict[str, object] = dict.fromkeys(COMPARISON_COLUMNS)
    row |= {"base": comparison.base, "other": comparison.other, "metric": comparison.metric.name}
    row |= {**mean.conditions.as_dict(), "model": mean.model, "verdict": f"geometric mean of {mean.cells}"}
    return row | {"ratio": mean.value, "ratio_ci_low": mean.ci_low, "ratio_ci_high": mean.ci_high}


def _row(comparison: Comparison, cell: Cell, **values: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(COMPARISON_COLUMNS)
    row |= {"base": comparison.base, "other": comparison.other, "metric": comparison.metric.name}
    row |= {name: getattr(cell, name) for name in IDENTITY_FIELDS}
    floats = {key: float(value) for key, value in values.items() if isinstance(value, int | float)}
    return row | values | floats
