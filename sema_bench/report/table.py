"""Show a run in a terminal: a compact summary first, and everything else on request.

The summary is one table for each set of conditions (models down, resolutions across, growth last) with sentences from
``summary``. Names are ``Text``: rich would take ``sema_tiny[linear]`` for markup.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import by_conditions, by_model, environments_of, resolutions_of
from sema_bench.analysis.corruption import corruption_errors, is_corrupted, uncorrupted
from sema_bench.analysis.crossover import Crossover, compare_conditions
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.ranking import leaders, unranked
from sema_bench.analysis.scaling import Fit, Scaling, analyse
from sema_bench.report.columns import Column, exponent, fits, print_columns
from sema_bench.report.corruption import print_corruption
from sema_bench.report.remarks import (
    accuracy_notes,
    counting_notes,
    disturbance_notes,
    failure_notes,
    forecast_note,
    launch_notes,
    precision_note,
)
from sema_bench.report.summary import ANSWERED, drift_of, findings, headlines, some
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.spec.record import Record
from sema_bench.store.table import is_launch_bound, stayed_disturbed
from sema_bench.text.escape import printable

#: Metric → heading of its matrix; only measured metrics have one.
MATRICES = {
    "top1": "top-1 accuracy",
    "miou": "mIoU",
    "latency_s": "latency, median",
    "throughput_images_per_s": "throughput, batch / median latency",
    "peak_memory_bytes": "peak memory",
    "predicted_peak_bytes": "peak memory, predicted",
    "macs": "multiply-accumulates of one image",
    "roofline_share": "share of the roofline, the measured peak",
    "energy_j_per_image": "energy of one image",
    "compile_s": "compilation",
}
#: Metrics whose compact table needs the remarks on counts.
_COUNTED = frozenset({"macs", "params", "peak_memory_bytes", "predicted_peak_bytes"})
#: Metrics that a disturbed machine distorts.
_TIMED = ("latency_s", "throughput_images_per_s", "roofline_share")
_EXPONENTS = {
    "latency_s": "latency",
    "relative_latency": "drift\nremoved",
    "activation_bytes": "activations",
    "peak_memory_bytes": "peak\nmemory",
    "macs": "MACs",
}
#: Changes of the machine's speed below this share are not worth a remark.
_DRIFT = 0.02
#: Short statuses for narrow columns.
_SHORT = {"skipped": "skip", "timeout": "time", "crashed": "crash"}


def render(records: Sequence[Record], console: Console, *, details: bool = False) -> None:
    """Print the summary of ``records`` (one per cell), and their ``details``, within the width of ``console``."""
    if not records:
        console.print(Text("no records"))
        return
    groups = by_conditions(pool_weights(uncorrupted(records)))
    for number, (conditions, group) in enumerate(groups.items()):
        if number:
            console.print()
        console.print(Text(conditions.text, style="bold"))
        if len(mixed := environments_of(group)) > 1:
            names = ", ".join(mixed)
            console.print(Text(f"warning: {len(mixed)} environments are mixed here ({names}); times do not compare"))
        scaling = analyse(group).readable
        shown = headlines(group)
        for metric in shown:
            _print_compact(metric, group, scaling, console)
            if metric in ACCURACIES:
                _note(accuracy_notes(group), console)
            elif metric in _COUNTED:
                _note(counting_notes(group), console)
        for sentence in findings(group, scaling):
            console.print(Text(printable(sentence)))
        if details:
            _print_details(group, scaling, shown, console)
    for heading, sentences in compare_conditions(groups):
        console.print(Text(f"\n{heading}", style="bold"))
        for sentence in sentences:
            console.print(Text(f"  {printable(sentence)}"))
    if any(map(is_corrupted, records)):
        print_corruption(corruption_errors(records), console)


def _print_compact(metric: str, group: Sequence[Record], scaling: Scaling, console: Console) -> None:
    """Print one metric with the best of each column marked, the growth of latency, and a legend."""
    unit = _unit(metric, group)
    sizes = {size: [r for r in group if r.cell.resolution == size] for size in resolutions_of(group)}
    first = {id(r) for cells in sizes.values() for r in leaders(cells, metric) if metric in ANSWERED}
    marks = {id(r): "*" * (id(r) in first) + _doubts(r, metric) for r in group}
    width = {size: max(len(marks[id(r)]) for r in cells) for size, cells in sizes.items()}

    def show(record: Record) -> Text:
        text = _cell(record, metric, unit)
        text = Text(_SHORT.get(text.plain, text.plain), style="bold" if id(record) in first else text.style)
        return text.append(marks[id(record)].ljust(width[record.cell.resolution]))

    label = METRICS[metric].short
    corner = f"{label}, {unit.symbol}".rstrip(", ")
    curves = [fit for fit in scaling.fits if fit.metric == metric == "latency_s"]
    growth = _growth(curves) if any(fit.exponent for fit in curves) else []
    print_matrix("", group, show, console, corner=corner, growth=growth)
    ranked = "; cells without interval are not ranked" if unranked(group, metric) else ""
    legend = [f"* {ANSWERED[metric]}, or level with it (95% intervals overlap){ranked}"] if first else []
    doubts = {"!": "disturbed", "~": "bound by kernel launches, not by their work"}
    legend += [f"{sign} {what}" for sign, what in doubts.items() if any(sign in mark for mark in marks.values())]
    notes = ["   ".join(legend)]
    if growth:
        drift = f"; machine speed drifted {drift_of(group):.0%}" if drift_of(group) > _DRIFT else ""
        notes.append(f"growth: latency ∝ pixels^growth{_bends(''.join(growth))}{drift}")
    notes += [precision_note(group)] if metric in _TIMED else []
    reasons = _without_exponent(curves)
    for (_, reason), models in reasons.items():
        notes.append(f"no exponent{f' of {some(models)}' if growth or len(reasons) > 1 else ''}: {reason}")
    _note(notes, console)


def _without_exponent(fits: Iterable[Fit]) -> dict[tuple[str, str], list[str]]:
    """Map metric and reason to the models that were measured at several sizes and have no exponent."""
    models: dict[tuple[str, str], list[str]] = {}
    for fit in fits:
        if not fit.exponent and fit.sizes > 1:
            models.setdefault((fit.metric, fit.reason), []).append(fit.model)
    return models


def _growth(curves: Iterable[Fit]) -> list[str]:
    """Write the exponents, each with an arrow if it changes over the larger half of the sizes."""
    texts = []
    for fit in curves:
        texts.append(f"{exponent(fit.exponent)} {_bend(fit)}".rstrip())
    arrows = any(text.endswith(("↑", "↓")) for text in texts)
    return [text if text.endswith(("↑", "↓")) or not arrows else f"{text}  " for text in texts]


def _bend(fit: Fit) -> str:
    """Return ↑ for an exponent that rises with size, ↓ for one that falls; "" for a power law."""
    large = fit.exponent_large or fit.exponent_tail
    if not (fit.curved and fit.exponent and large) or large.value == fit.exponent.value:
        return ""
    return "↑" if large.value > fit.exponent.value else "↓"


def _bends(marks: str) -> str:
    """Explain the arrows that are in ``marks``."""
    words = {"↑": "rising with size", "↓": "falling with size"}
    return "".join(f"; {arrow} {meaning}" for arrow, meaning in words.items() if arrow in marks)


def _print_details(group: Sequence[Record], scaling: Scaling, known: Sequence[str], console: Console) -> None:
    hidden = set(known)
    for metric, better in (("predicted_peak_bytes", "peak_memory_bytes"), ("throughput_images_per_s", "latency_s")):
        if any(record.result(better) for record in group):
            hidden.add(metric)
    if group[0].cell.batch_policy == "max":
        print_matrix("images in the largest batch that fits", group, _batch, console)
        hidden.add("latency_s")
    for metric in MATRICES:
        if metric in hidden or not any(record.result(metric) for record in group):
            continue
        unit = _unit(metric, group)
        heading = f"{MATRICES[metric]} ({unit.symbol})" if unit.symbol else MATRICES[metric]
        print_matrix(heading, group, partial(_marked, metric=metric, unit=unit), console)
    console.print()
    _note([forecast_note(group)], console)
    if _COUNTED.isdisjoint(known):
        _note(counting_notes(group), console)
    _note([*disturbance_notes(group), *launch_notes(group), *failure_notes(group)], console)
    _print_scaling(group, scaling, console)
    _print_crossovers(scaling.crossovers, console)


def _batch(record: Record) -> Text:
    # The batch of a failed cell was tried and did not fit.
    return Text(str(record.cell.batch)) if record.status == "ok" else _failed(record)


def _failed(record: Record) -> Text:
    return Text(record.status, style="dim" if record.status == "skipped" else "red")


def _unit(metric: str, group: Sequence[Record]) -> fmt.Unit:
    """Return the unit for all values of a metric; none without values."""
    values = [result.value for record in group if (result := record.result(metric)) is not None]
    return fmt.unit_for(metric, values) if values else fmt.Unit("", 1.0)


def print_matrix(
    heading: str,
    group: Sequence[Record],
    show: Callable[[Record], Text],
    console: Console,
    *,
    corner: str = "pixels",
    growth: Sequence[str] = (),
) -> None:
    """Print the text that ``show`` gives for each record: models down, resolutions across.

    A narrow console leaves out sizes in the middle, and the intervals of the exponents in ``growth``, the last column.
    """
    models = by_model(group)
    cells = {(model, record.cell.resolution): show(record) for model, curve in models.items() for record in curve}
    columns: list[Column] = [
        (resolution.label, [cells.get((model, resolution), Text(fmt.EMPTY, style="dim")) for model in models])
        for resolution in resolutions_of(group)
    ]
    last = len(columns) - 1
    drop = sorted(range(1, last), key=lambda i: -min(i, last - i))
    if growth:
        columns.append(("growth", growth))
        if not fits(corner, list(models), columns, console.width, margin=1):
            columns[-1] = ("growth", [re.sub(r" ±\S+", "", text) for text in growth])
    print_columns(heading, corner, list(models), columns, console, justify="right", drop=drop)


def _marked(record: Record, metric: str, unit: fmt.Unit) -> Text:
    doubts = _doubts(record, metric)
    return _cell(record, metric, unit).append(f" {doubts}" if doubts else "")


def _doubts(record: Record, metric: str) -> str:
    """Mark a time that a disturbance (!) or kernel launches (~) distort."""
    if metric not in _TIMED or record.result(metric) is None:
        return ""
    return "!" * stayed_disturbed(record) + "~" * is_launch_bound(record)


def _cell(record: Record, metric: str, unit: fmt.Unit) -> Text:
    result = record.result(metric)
    if result is None:
        return Text(fmt.EMPTY, style="dim") if record.status == "ok" else _failed(record)
    if metric not in ACCURACIES:
        return Text(fmt.number(result.value / unit.factor))
    if result.ci_low is None or result.ci_high is None:
        return Text(f"{100 * result.value:.1f}")
    return Text(f"{100 * result.value:.1f} ±{50 * (result.ci_high - result.ci_low):.1f}")


def _print_scaling(group: Sequence[Record], scaling: Scaling, console: Console) -> None:
    fitted = {fit.metric for fit in scaling.fits if fit.exponent}
    if not fitted:
        return
    limits = scaling.limits
    # Weights are the same at every size and hide the growth of the rest: activations show more than the peak.
    hidden = {"peak_memory_bytes"} if "activation_bytes" in fitted else set()
    timed = "relative_latency" if "relative_latency" in fitted else "latency_s"
    columns: list[Column] = []
    for metric in (metric for metric in _EXPONENTS if metric in fitted - hidden):
        of_metric = [fit for fit in scaling.fits if fit.metric == metric]  # a fit for each limit
        columns.append((_EXPONENTS[metric], [_with_bend(fit) for fit in of_metric]))
        if any(fit.exponent_large for fit in of_metric) and (metric == timed or any(fit.curved for fit in of_metric)):
            heading = f"{_EXPONENTS[metric].splitlines()[0]}\nlarge"
            columns.append((heading, [exponent(fit.exponent_large) for fit in of_metric]))
    ends = len(columns)
    largest = [limit.largest_ok.label if limit.largest_ok else fmt.EMPTY for limit in limits]
    stops = [f"{x.failure.cell.resolution.label} {x.failure.status}" if x.failure else fmt.EMPTY for x in limits]
    columns += [("largest\nok", largest), ("first\nfailure", stops)]
    drop, names = [*reversed(range(1, ends)), ends, ends + 1], [limit.model for limit in limits]
    print_columns("growth with image size: exponents", "", names, columns, console, justify="left", drop=drop)
    large = any(header.endswith("large") for header, _ in columns)
    halves = "; large: over the larger half of the sizes" if large else ""
    notes = [f"cost ∝ N^exponent with N = pixels (∝ tokens); 95% interval{halves}"]
    if bends := _bends("".join(str(cell) for _, cells in columns for cell in cells)):
        notes.append(f"{bends.removeprefix('; ')}: not a power law{'; read large' if large else ''}")
    if timed == "relative_latency":
        notes.append(
            f"drift: the same small cell, timed beside every size, took up to {drift_of(group):.0%} longer at one size "
            "than at another; drift removed: latency in units of it"
        )
    for (metric, reason), models in _without_exponent(scaling.fits).items():
        notes.append(f"no exponent of {METRICS[metric].label} of {', '.join(models)}: {reason}")
    _note(notes, console)


def _with_bend(fit: Fit) -> str:
    value, space, interval = exponent(fit.exponent).partition(" ")
    return f"{value}{_bend(fit)}{space}{interval}"


def _print_crossovers(pairs: Sequence[Crossover], console: Console) -> None:
    if not pairs:
        return
    first = [pair for pair in pairs if pair.model_a == pairs[0].model_a]
    console.print(Text(f"\nlatency against {pairs[0].model_a}", style="italic"))
    for pair in first:
        console.print(Text.assemble(("  " + printable(pair.model_b), "bold"), ": ", printable(pair.statement)))
    if rest := pairs[len(first) :]:
        crossing = sum(bool(pair.crossings) for pair in rest) or "none"
        _note([f"crossovers.csv has {fmt.counted(len(rest), 'other pair')}, {crossing} with a crossing"], console)


def _note(lines: Iterable[str], console: Console) -> None:
    for line in filter(None, lines):
        console.print(Text(line, style="dim"))
