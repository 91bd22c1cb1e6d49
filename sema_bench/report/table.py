"""Show a run in a terminal: a compact summary that answers first, and everything else on request.

The summary is one table for each conditions (models down, resolutions across, growth last) with sentences from
``summary``. The details are the other metrics, remarks, exponents with the limits of models, crossovers against the
first model, and each failure's reason once. Names are ``Text``: rich would take ``sema_tiny[linear]`` for markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import Conditions, by_conditions, by_model, environments_of, resolutions_of
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.ranking import leaders, unranked
from sema_bench.analysis.scaling import Fit, Scaling, analyse
from sema_bench.report.columns import Column, exponent, fits, print_columns
from sema_bench.report.remarks import (
    accuracy_notes,
    counting_notes,
    disturbance_notes,
    failure_notes,
    forecast_note,
    precision_note,
)
from sema_bench.report.summary import drift_of, findings, headlines, some
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.table import stayed_disturbed
from sema_bench.text.escape import printable

#: Metric → heading of its matrix; only measured metrics have one.
MATRICES = {
    "top1": "top-1 accuracy",
    "latency_s": "latency, median",
    "throughput_images_per_s": "throughput, batch / median latency",
    "peak_memory_bytes": "peak memory",
    "predicted_peak_bytes": "peak memory, predicted",
    "macs": "multiply-accumulates of one image",
    "roofline_share": "share of the roofline",
    "energy_j_per_image": "energy of one image",
    "compile_s": "compilation",
}
#: Metrics that a disturbed machine distorts.
_TIMED = ("latency_s", "throughput_images_per_s", "roofline_share")
#: Metrics with an interval → what the first of a column is.
_LEADING = {"latency_s": "fastest", "throughput_images_per_s": "fastest", "top1": "best"}
_EXPONENTS = {
    "latency_s": "latency",
    "relative_latency": "drift\nremoved",
    "activation_bytes": "activations",
    "peak_memory_bytes": "peak\nmemory",
    "macs": "MACs",
}
#: Changes of the machine's speed below this share are not worth a remark.
_DRIFT = 0.02
#: Statuses where columns are narrow.
_SHORT = {"skipped": "skip", "timeout": "time", "crashed": "crash"}


def render(records: Sequence[Record], console: Console, *, details: bool = False) -> None:
    """Print the summary of ``records`` (one per cell), and their ``details``, within the width of ``console``."""
    if not records:
        console.print(Text("no records"))
        return
    records = pool_weights(records)
    scaling = analyse(records).readable
    for number, (conditions, group) in enumerate(by_conditions(records).items()):
        if number:
            console.print()
        console.print(Text(conditions.text, style="bold"))
        if len(mixed := environments_of(group)) > 1:
            names = ", ".join(mixed)
            console.print(Text(f"warning: {len(mixed)} environments are mixed here ({names}); times do not compare"))
        shown = headlines(conditions, group)
        for metric in shown:
            _print_compact(metric, group, conditions, scaling, console)
            for line in _REMARKS.get(metric, _no_remarks)(group):
                _note(line, console)
        for sentence in findings(conditions, group, scaling):
            console.print(Text(printable(sentence)))
        if details:
            _print_details(group, conditions, scaling, shown, console)


def _print_compact(
    metric: str, group: Sequence[Record], conditions: Conditions, scaling: Scaling, console: Console
) -> None:
    """Print one metric with the first of each column marked, the growth of latency, and a legend."""
    unit = _unit(metric, group)
    sizes = {size: [r for r in group if r.cell.resolution == size] for size in resolutions_of(group)}
    first = {id(r) for cells in sizes.values() for r in leaders(cells, metric) if metric in _LEADING}
    shaky = {id(r) for r in group if metric in _TIMED and stayed_disturbed(r)}

    marks = {id(r): "*" * (id(r) in first) + "!" * (id(r) in shaky) for r in group}
    width = {size: max(len(marks[id(r)]) for r in cells) for size, cells in sizes.items()}

    def show(record: Record) -> Text:
        text = _cell(record, metric, unit, mark="")
        text = Text(_SHORT.get(text.plain, text.plain), style="bold" if id(record) in first else text.style)
        return text.append(marks[id(record)].ljust(width[record.cell.resolution]))

    label = METRICS[metric].label.removesuffix(" accuracy")
    corner = f"{label}, {unit.symbol}".rstrip(", ")
    curves = {f.model: f for f in scaling.fits if f.conditions == conditions and f.metric == metric == "latency_s"}
    known = any(fit.exponent for fit in curves.values())
    growth = _growth(curves.values()) if known else []
    brief = _growth(curves.values(), interval=False) if known else []
    print_matrix("", group, show, console, corner=corner, beside=growth, or_beside=brief)
    ranked = "of those with an interval, " if unranked(group, metric) else ""
    legend = [f"* {_LEADING[metric]} {ranked}or level with it (95 % intervals overlap)"] if first else []
    _note("   ".join([*legend, *(["! disturbed"] if shaky else [])]), console)
    if growth:
        late = "; ↑ rising with size" if any(text.plain.endswith("↑") for text in growth) else ""
        drift = f"; drift between sizes {drift_of(group):.0%}" if drift_of(group) > _DRIFT else ""
        _note(f"growth: latency ∝ pixels^growth{late}{drift}", console)
    _note(precision_note(group) if metric in _TIMED else "", console)
    lacking = [fit for fit in curves.values() if not fit.exponent and fit.sizes > 1]
    for reason in dict.fromkeys(fit.reason for fit in lacking):
        models = [fit.model for fit in lacking if fit.reason == reason]
        _note(f"no growth{f' of {some(models)}' if known else ''}: {reason}", console)


def _growth(curves: Iterable[Fit], *, interval: bool = True) -> list[Text]:
    """Write the exponents, with an arrow where it is higher over the larger half of the sizes."""
    texts = []
    for fit in curves:
        text, large = exponent(fit.exponent), fit.exponent_large or fit.exponent_tail
        rises = fit.exponent and fit.curved and large and large.value > fit.exponent.value
        texts.append((text if interval else text.partition(" ")[0]) + (" ↑" if rises else ""))
    arrows = any(text.endswith("↑") for text in texts)
    return [Text(text if text.endswith("↑") or not arrows else f"{text}  ") for text in texts]


def _print_details(
    group: Sequence[Record], conditions: Conditions, scaling: Scaling, known: Sequence[str], console: Console
) -> None:
    shown = [metric for metric in MATRICES if metric not in known and any(r.result(metric) for r in group)]
    for metric, better in (("predicted_peak_bytes", "peak_memory_bytes"), ("throughput_images_per_s", "latency_s")):
        if metric in shown and better in (*shown, *known):
            shown.remove(metric)
    if conditions.batch_is_found:
        print_matrix("images in the largest batch that fits", group, _batch, console)
        shown = [metric for metric in shown if metric != "latency_s"]
    for metric in shown:
        _print_metric(metric, group, console)
    console.print()
    remarks = [forecast_note(group), *disturbance_notes(group), *failure_notes(group)]
    if not any(_REMARKS.get(metric) is counting_notes for metric in known):
        remarks[1:1] = counting_notes(group)
    for line in remarks:
        _note(line, console)
    _print_scaling(group, conditions, scaling, console)
    _print_crossovers(conditions, scaling, console)


def _batch(record: Record) -> Text:
    if record.status != "ok":  # the batch was tried and did not fit
        return Text(record.status, style="dim" if record.status == "skipped" else "red")
    return Text(str(record.cell.batch))


def _print_metric(metric: str, group: Sequence[Record], console: Console) -> None:
    unit = _unit(metric, group)
    heading = f"{MATRICES[metric]} ({unit.symbol})" if unit.symbol else MATRICES[metric]
    print_matrix(heading, group, lambda record: _cell(record, metric, unit), console)


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
    beside: Sequence[Text] = (),
    or_beside: Sequence[Text] = (),
) -> None:
    """Print the text that ``show`` gives for each record: models down, resolutions across.

    A narrow console leaves out sizes in the middle.

    Args:
        heading: line above the table; "" for none.
        group: the records.
        show: makes the text of a cell.
        console: the terminal or file.
        corner: heading of the models.
        beside: a last column, growth; empty for none.
        or_beside: the same, narrower, if that makes all sizes fit.
    """
    models = by_model(group)
    cells = {(model, record.cell.resolution): show(record) for model, curve in models.items() for record in curve}
    columns: list[Column] = [
        (resolution.label, [cells.get((model, resolution), Text(fmt.EMPTY, style="dim")) for model in models])
        for resolution in resolutions_of(group)
    ]
    last = len(columns) - 1
    drop = sorted(range(1, last), key=lambda i: -min(i, last - i))
    if beside:
        columns.append(("growth", list(beside)))
        if not fits(corner, list(models), columns, console.width, margin=1):
            columns[-1] = ("growth", list(or_beside))
    print_columns(heading, corner, list(models), columns, console, justify="right", drop=drop)


def _cell(record: Record, metric: str, unit: fmt.Unit, *, mark: str = " !") -> Text:
    result = record.result(metric)
    if result is not None:
        if metric == "top1":
            return Text(_with_interval(result))
        shaky = metric in _TIMED and stayed_disturbed(record)
        return Text(fmt.number(result.value / unit.factor) + (mark if shaky else ""))
    if record.status != "ok":
        return Text(record.status, style="dim" if record.status == "skipped" else "red")
    return Text(fmt.EMPTY, style="dim")


def _with_interval(share: Measurement) -> str:
    """Write a share in percent with half of its interval."""
    if share.ci_low is None or share.ci_high is None:
        return f"{share.value:.1%}".rstrip("%")
    return f"{100 * share.value:.1f} ±{50 * (share.ci_high - share.ci_low):.1f}"


def _print_scaling(group: Sequence[Record], conditions: Conditions, scaling: Scaling, console: Console) -> None:
    curves = {(f.metric, f.model): f for f in scaling.fits if f.conditions == conditions}
    fitted = {metric for (metric, _), fit in curves.items() if fit.exponent}
    limits = [limit for limit in scaling.limits if limit.conditions == conditions]
    if not fitted:
        return
    # Weights are the same at every size and hide the growth of the rest: activations show more than the peak.
    hidden = {"peak_memory_bytes"} if "activation_bytes" in fitted else set()
    timed = "relative_latency" if "relative_latency" in fitted else "latency_s"
    columns: list[Column] = []
    for metric in (metric for metric in _EXPONENTS if metric in fitted - hidden):
        of_metric = [curves[metric, limit.model] for limit in limits]
        columns.append((_EXPONENTS[metric], [_starred(fit) for fit in of_metric]))
        if any(fit.exponent_large for fit in of_metric) and (metric == timed or any(fit.curved for fit in of_metric)):
            columns.append(("large", [Text(exponent(fit.exponent_large)) for fit in of_metric]))
    ends = len(columns)
    largest = [limit.largest_ok.label if limit.largest_ok else fmt.EMPTY for limit in limits]
    stops = [f"{x.first_failed.label} {x.status}" if x.first_failed else fmt.EMPTY for x in limits]
    columns += [("largest\nok", list(map(Text, largest))), ("first\nfailure", list(map(Text, stops)))]
    names = [limit.model for limit in limits]
    drop = [*reversed(range(1, ends)), ends, ends + 1]
    print_columns("growth with image size: exponents", "", names, columns, console, justify="left", drop=drop)
    large = any(header == "large" for header, _ in columns)
    _note(
        "cost ∝ N^exponent with N = pixels (∝ tokens); 95 % interval"
        + ("; large: the column before it, over the larger half of the sizes" if large else ""),
        console,
    )
    if any(fit.curved for fit in curves.values()):
        _note(f"* not a power law: the exponent changes over the range{'; read large' if large else ''}", console)
    if timed == "relative_latency":
        _note(
            f"drift: the same small cell, timed beside every size, took up to {drift_of(group):.0%} longer at one size "
            "than at another; drift removed: latency in units of it",
            console,
        )
    lacking = [fit for fit in curves.values() if not fit.exponent and fit.sizes > 1]
    for metric, reason in dict.fromkeys((fit.metric, fit.reason) for fit in lacking):
        models = ", ".join(fit.model for fit in lacking if (fit.metric, fit.reason) == (metric, reason))
        _note(f"no exponent of {METRICS[metric].label} of {models}: {reason}", console)


def _starred(fit: Fit) -> Text:
    value, *interval = exponent(fit.exponent).split(" ", 1)
    return Text(" ".join((f"{value}{'*' if fit.curved and fit.exponent else ''}", *interval)))


def _print_crossovers(conditions: Conditions, scaling: Scaling, console: Console) -> None:
    pairs = [pair for pair in scaling.crossovers if pair.conditions == conditions]
    if not pairs:
        return
    first = pairs[0].model_a
    console.print(Text(f"\nlatency against {first}", style="italic"))
    for pair in pairs:
        if pair.model_a == first:
            console.print(Text.assemble(("  " + printable(pair.model_b), "bold"), ": ", printable(pair.statement)))
    rest = [pair for pair in pairs if pair.model_a != first]
    if rest:
        crossing = sum(bool(pair.crossings) for pair in rest)
        _note(f"{fmt.counted(len(rest), 'other pair')}, {crossing} of which cross: crossovers.csv", console)


def _no_remarks(group: Sequence[Record]) -> Iterator[str]:
    yield from ()


#: Metric of the compact table → what people must know of it beside the values.
_REMARKS: Mapping[str, Callable[[Sequence[Record]], Iterator[str]]] = {
    "top1": accuracy_notes,
    **dict.fromkeys(("macs", "params", "peak_memory_bytes", "predicted_peak_bytes"), counting_notes),
}


def _note(text: str, console: Console) -> None:
    if text:
        console.print(Text(text, style="dim"))
