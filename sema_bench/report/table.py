"""The results in a terminal: one block per conditions, models down, resolutions across, failures in place.

Below the matrices come the exponents, where each model stops, the crossovers against the first model, and each
failure's reason once. Names are put in as ``Text``: rich would take ``sema_tiny[linear]`` for markup.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sema_bench.analysis.conditions import Conditions, by_conditions, by_model, environments_of, resolutions_of
from sema_bench.analysis.pooled import pool_weights, seeds_of
from sema_bench.analysis.scaling import Fit, Limit, Scaling, analyse
from sema_bench.report.columns import Column, column_width, exponent, print_columns
from sema_bench.spec import units as fmt
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Measurement, Record
from sema_bench.store.table import disturbances, stayed_disturbed
from sema_bench.text.escape import printable

#: Metric → heading of its matrix; one that was not measured has no matrix.
MATRICES = {
    "top1": "top-1 accuracy",
    "latency_s": "latency, median",
    "peak_memory_bytes": "peak memory",
    "predicted_peak_bytes": "peak memory, predicted",
    "macs": "multiply-accumulates of one image",
    "roofline_share": "share of the roofline",
    "energy_j_per_image": "energy of one image",
    "compile_s": "compilation",
}
#: The same where each cell has a batch of its own: what is of a batch does not compare.
_MATRICES_OF_FOUND_BATCH = {
    "throughput_images_per_s": "throughput, batch / median latency",
    **{metric: MATRICES[metric] for metric in MATRICES if metric != "latency_s"},
}
#: Metrics that a disturbed machine bends.
_TIMED = ("latency_s", "throughput_images_per_s", "roofline_share")
_EXPONENTS = {
    "latency_s": "latency",
    "relative_latency": "latency, drift\nremoved",
    "activation_bytes": "activations",
    "peak_memory_bytes": "peak memory",
    "macs": "MACs",
}


def render(records: Sequence[Record], console: Console) -> None:
    """Print the tables of ``records`` (one per cell) to ``console``, within its width; plain text when piped."""
    if not records:
        console.print(Text("no records"))
        return
    records = pool_weights(records)
    scaling = analyse(records)
    for number, (conditions, group) in enumerate(by_conditions(records).items()):
        if number:
            console.print()
        console.print(Text(conditions.text, style="bold"))
        if len(mixed := environments_of(group)) > 1:
            names = ", ".join(mixed)
            console.print(Text(f"warning: {len(mixed)} environments are mixed here ({names}); times do not compare"))
        _print_block(group, conditions, scaling, console)


def _print_block(group: Sequence[Record], conditions: Conditions, scaling: Scaling, console: Console) -> None:
    matrices = _MATRICES_OF_FOUND_BATCH if conditions.batch_is_found else MATRICES
    shown = [metric for metric in matrices if any(r.result(metric) for r in group)]
    if "peak_memory_bytes" in shown and "predicted_peak_bytes" in shown:
        shown.remove("predicted_peak_bytes")  # what was measured says it better
    if conditions.batch_is_found:
        print_matrix("images in the largest batch that fits", group, _batch, console)
    known = any(r.result("params") for r in group)  # the same at every size: a matrix where nothing else is known
    for metric in shown or ["params" if known else "latency_s"]:
        _print_metric(metric, group, console)
    console.print()
    for line in (
        _precision_note(group),
        _forecast_note(group),
        *_counting_notes(group),
        *_accuracy_notes(group),
        *_disturbance_notes(group),
        *_failure_notes(group),
    ):
        if line:
            _note(line, console)
    _print_scaling(group, conditions, scaling, console)
    _print_crossovers(conditions, scaling, console)


def _batch(record: Record) -> Text:
    if record.status != "ok":  # a batch that was tried is none that fits
        return Text(record.status, style="dim" if record.status == "skipped" else "red")
    return Text(str(record.cell.batch))


def _print_metric(metric: str, group: Sequence[Record], console: Console) -> None:
    values = [result.value for r in group if (result := r.result(metric)) is not None]
    unit = fmt.unit_for(metric, values)
    title = (_MATRICES_OF_FOUND_BATCH | MATRICES).get(metric, METRICS[metric].label)
    heading = f"{title} ({unit.symbol})" if unit.symbol and values else title
    print_matrix(heading, group, lambda record: _cell(record, metric, unit), console)


def print_matrix(heading: str, group: Sequence[Record], show: Callable[[Record], Text], console: Console) -> None:
    """Print what ``show`` makes of each record: models down, resolutions across."""
    models = by_model(group)
    cells = {(model, record.cell.resolution): show(record) for model, curve in models.items() for record in curve}
    columns = [
        (resolution.label, [cells.get((model, resolution), Text(fmt.EMPTY, style="dim")) for model in models])
        for resolution in resolutions_of(group)
    ]
    print_columns(heading, "pixels", list(models), columns, console, justify="right")


def _cell(record: Record, metric: str, unit: fmt.Unit) -> Text:
    result = record.result(metric)
    if result is not None:
        if metric == "top1":
            return Text(_with_interval(result))
        mark = " !" if metric in _TIMED and stayed_disturbed(record) else ""
        return Text(fmt.number(result.value / unit.factor) + mark)
    if record.status != "ok":
        return Text(record.status, style="dim" if record.status == "skipped" else "red")
    return Text(fmt.EMPTY, style="dim")


def _with_interval(share: Measurement) -> str:
    """Return a share in percent with half of its interval."""
    if share.ci_low is None or share.ci_high is None:
        return f"{share.value:.1%}".rstrip("%")
    return f"{100 * share.value:.1f} ±{50 * (share.ci_high - share.ci_low):.1f}"


def _accuracy_notes(group: Sequence[Record]) -> Iterator[str]:
    """Say what the interval of accuracy is, and what could not be read."""
    tested = [record for record in group if record.result("top1")]
    if not tested:
        return
    seeds = max(map(seeds_of, tested))
    what = (
        f"mean of {seeds} seeds, half of Student's t interval over them" if seeds > 1 else "half of Wilson's interval"
    )
    images = max(record.value("evaluated_images") or 0 for record in tested)
    yield f"top-1: {what}, 95 %; {images:.0f} images"
    about = [facts for r in tested if isinstance(facts := r.details.get("accuracy"), dict)]
    dropped = dict.fromkeys(str(name) for facts in about for name in _listed(facts.get("weights_dropped")))
    if dropped:
        yield f"left out of the checkpoint, not the model's: {printable(', '.join(dropped))}"
    unreadable = max(record.value("unreadable_images") or 0 for record in tested)
    if unreadable:
        facts = next(r.details.get("accuracy") for r in tested if r.value("unreadable_images") == unreadable)
        named = _listed(facts.get("unreadable")) if isinstance(facts, dict) else []
        first = f", {printable(str(named[0]))} first" if named else ""
        yield f"warning: {unreadable:.0f} images could not be read and are left out{first}"


def _listed(value: object) -> Sequence[object]:
    """Return a list of a record's details; nothing where it is none."""
    return value if isinstance(value, list | tuple) else ()


def _precision_note(group: Sequence[Record]) -> str:
    widths: list[tuple[float, Record]] = []
    without = 0
    for record in group:
        latency = record.measurements.get("latency_s")
        if record.status != "ok" or latency is None or latency.value <= 0:
            continue
        if latency.ci_low is None or latency.ci_high is None:
            without += 1
        else:
            widths.append(((latency.ci_high - latency.ci_low) / 2 / latency.value, record))
    missing = f"; {without} without interval" if without else ""
    if not widths:
        return f"latency has no interval in {without} cells: too few samples" if without else ""
    widest, worst = max(widths, key=lambda pair: pair[0])
    middle = sorted(width for width, _ in widths)[len(widths) // 2]
    where = f"{worst.cell.model} at {worst.cell.resolution.label}"
    return f"95 % interval of latency: ±{middle:.1%} typically, ±{widest:.1%} at worst ({where}){missing}"


def _forecast_note(group: Sequence[Record]) -> str:
    """Say how well the forecast of memory held, where both are known."""
    ratios = [
        predicted / measured
        for record in group
        if (predicted := record.value("predicted_peak_bytes")) and (measured := record.value("peak_memory_bytes"))
    ]
    if not ratios:
        return ""
    return (
        f"peak memory was predicted to {min(ratios):.3f} to {max(ratios):.3f} of what was measured, {len(ratios)} cells"
    )


def _counting_notes(group: Sequence[Record]) -> Iterator[str]:
    """Yield once, with the models that it is about, what the counts of parameters and MACs do not say themselves."""
    models: dict[str, dict[str, None]] = {}
    for model, curve in by_model(group).items():
        for record in curve:
            for note in _counting_notes_of(record):
                models.setdefault(note, {})[model] = None
    yield from (f"{', '.join(names)}: {note}" for note, names in models.items())


def _counting_notes_of(record: Record) -> Iterator[str]:
    trainable, total = record.value("params"), record.value("params_total")
    if trainable is not None and total is not None and trainable != total:
        yield f"{total - trainable:,.0f} of {total:,.0f} parameters are frozen; params are the others"
    details = record.details
    untraced, notes = details.get("untraced"), details.get("counting_notes")
    if isinstance(untraced, Mapping) and untraced:
        reasons = "; ".join(f"{source}: {reason}" for source, reason in untraced.items())
        counted = "MACs lack a source" if record.result("macs") else "MACs could not be counted"
        yield f"{counted} ({printable(reasons)})"
    if uncovered := _listed(details.get("uncovered_operators")):
        yield f"no counter knows {printable(', '.join(map(str, uncovered)))}; MACs are without what they cost"
    yield from (printable(str(note)) for note in _listed(notes))


def _disturbance_notes(group: Sequence[Record]) -> Iterator[str]:
    """Name the cells of which more than half of the sample windows were disturbed, with what disturbed them most."""
    cells: dict[str, list[str]] = {}
    for model, curve in by_model(group).items():
        for record in filter(stayed_disturbed, curve):
            reason = next(iter(disturbances(record)), "unknown")
            cells.setdefault(reason, []).append(f"{model} at {record.cell.resolution.label}")
    for reason, where in cells.items():
        yield f"! disturbed in more than half of its sample windows: {'; '.join(where)} ({printable(reason)})"


def _failure_notes(group: Sequence[Record]) -> Iterator[str]:
    """Yield each status and reason once, with the cells that it befell."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for model, curve in by_model(group).items():
        for record in curve:
            if record.status != "ok":
                cells = reasons.setdefault((record.status, record.reason), {})
                cells.setdefault(model, []).append(record.cell.resolution.label)
    for (status, reason), cells in reasons.items():
        where = "; ".join(f"{model} at {', '.join(sizes)}" for model, sizes in cells.items())
        yield f"{status}: {where}" + (f" ({printable(' '.join(reason.split()))})" if reason else "")


def _print_scaling(group: Sequence[Record], conditions: Conditions, scaling: Scaling, console: Console) -> None:
    fits = {(f.metric, f.model): f for f in scaling.fits if f.conditions == conditions}
    fitted = {metric for (metric, _), fit in fits.items() if fit.exponent}
    if not fitted:
        return
    limits = [limit for limit in scaling.limits if limit.conditions == conditions]
    names = [limit.model for limit in limits]
    # Weights are the same at every size and hide the growth of the rest, so activations are preferred to the peak.
    hidden = {"peak_memory_bytes"} if "activation_bytes" in fitted else set()
    timed = "relative_latency" if "relative_latency" in fitted else "latency_s"
    metrics = [metric for metric in _EXPONENTS if metric in fitted - hidden]
    columns: list[Column] = []
    for separator in (" ", "\n"):  # the interval goes under its exponent where the width is short
        columns = _scaling_columns(
            [[fits[metric, name] for name in names] for metric in metrics], timed, limits, separator
        )
        if sum(map(column_width, columns)) + max(map(cell_len, names)) < console.width:
            break
    print_columns("growth with image size: exponents", "", names, columns, console, justify="left")
    large = any(header.endswith("large") for header, _ in columns)
    _note(
        "cost ∝ N^exponent with N = pixels (∝ tokens); 95 % interval"
        + ("; “large”: over the larger half of the sizes" if large else ""),
        console,
    )
    if timed == "relative_latency":
        _note(_drift_note(group), console)
    if any(fits[metric, name].curved for metric in metrics for name in names):
        _note(f"* not a power law: the exponent changes over the range{'; read “large”' if large else ''}", console)


def _drift_note(group: Sequence[Record]) -> str:
    speeds = [value for record in group if (value := record.value("yardstick_s"))]
    change = max(speeds) / min(speeds) - 1
    return (
        f"drift: the same small cell, timed beside every size, took up to {change:.0%} longer at one size than at "
        "another; “drift removed” counts latency in units of it"
    )


def _scaling_columns(
    fits: Sequence[Sequence[Fit]], timed: str, limits: Sequence[Limit], separator: str
) -> list[Column]:
    columns: list[Column] = []
    for of_metric in fits:
        metric = of_metric[0].metric
        columns.append((_EXPONENTS[metric], [_exponent(fit, separator) for fit in of_metric]))
        if any(fit.exponent_large for fit in of_metric) and (metric == timed or any(fit.curved for fit in of_metric)):
            large = [Text(exponent(fit.exponent_large, separator=separator)) for fit in of_metric]
            heading = "the same" if metric == "relative_latency" else _EXPONENTS[metric]
            columns.append((f"{heading},\nlarge", large))
    largest = [Text(limit.largest_ok.label if limit.largest_ok else fmt.EMPTY) for limit in limits]
    stops = [f"{x.first_failed.label}{separator}{x.status}" if x.first_failed else fmt.EMPTY for x in limits]
    return [*columns, (f"largest{separator}ok", largest), (f"first{separator}failure", [Text(stop) for stop in stops])]


def _exponent(fit: Fit, separator: str) -> Text:
    value, *interval = exponent(fit.exponent, separator=separator).split(separator, 1)
    return Text(separator.join((f"{value}{'*' if fit.curved else ''}", *interval)))


def _print_crossovers(conditions: Conditions, scaling: Scaling, console: Console) -> None:
    pairs = [pair for pair in scaling.crossovers if pair.conditions == conditions]
    if not pairs:
        return
    first = pairs[0].model_a
    console.print(Text(f"\nlatency against {first}", style="italic"))
    for pair in pairs:
        if pair.model_a == first:
            line = Text.assemble(("  " + pair.model_b, "bold"), ": ", pair.statement)
            console.print(line)
    rest = [pair for pair in pairs if pair.model_a != first]
    if rest:
        crossing = sum(bool(pair.crossings) for pair in rest)
        text = f"{fmt.counted(len(rest), 'other pair')}, {crossing} of which cross: crossovers.csv"
        _note(text, console)


def _note(text: str, console: Console) -> None:
    console.print(Text(text, style="dim"))
