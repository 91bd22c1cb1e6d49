"""Write the remarks below the tables of a run: precision, what counts leave out, disturbances, failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sema_bench.analysis.conditions import by_model
from sema_bench.analysis.pooled import seeds_of
from sema_bench.spec.record import Record
from sema_bench.store.table import disturbances, stayed_disturbed
from sema_bench.text.escape import printable


def accuracy_notes(group: Sequence[Record]) -> Iterator[str]:
    """Describe the interval of accuracy, and name unreadable images."""
    tested = [record for record in group if record.result("top1")]
    if not tested:
        return
    seeds = max(map(seeds_of, tested))
    spread = (
        f"mean of {seeds} seeds, half of Student's t interval over them" if seeds > 1 else "half of Wilson's interval"
    )
    images = max(record.value("evaluated_images") or 0 for record in tested)
    yield f"top-1: {spread}, 95 %; {images:.0f} images"
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
    """Take a detail of a record as a list; anything else is an empty one."""
    return value if isinstance(value, list | tuple) else ()


def precision_note(group: Sequence[Record]) -> str:
    """Say how wide the intervals of latency are, and how many cells have none."""
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
    if not widths:
        return f"{without} cells without interval: too few samples to know an order" if without else ""
    missing = f"; {without} without" if without else ""
    widest, worst = max(widths, key=lambda pair: pair[0])
    middle = sorted(width for width, _ in widths)[len(widths) // 2]
    where = f"{worst.cell.model} at {worst.cell.resolution.label}"
    return f"intervals: ±{middle:.1%} typically, ±{widest:.1%} at worst ({where}){missing}"


def forecast_note(group: Sequence[Record]) -> str:
    """Compare predicted with measured memory."""
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


def counting_notes(group: Sequence[Record]) -> Iterator[str]:
    """Yield each remark on the counts of parameters and MACs once, with its models."""
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


def disturbance_notes(group: Sequence[Record]) -> Iterator[str]:
    """Name cells with more than half of their sample windows disturbed, and the main disturbance."""
    cells: dict[str, list[str]] = {}
    for model, curve in by_model(group).items():
        for record in filter(stayed_disturbed, curve):
            reason = next(iter(disturbances(record)), "unknown")
            cells.setdefault(reason, []).append(f"{model} at {record.cell.resolution.label}")
    for reason, where in cells.items():
        yield f"! disturbed in more than half of its sample windows: {'; '.join(where)} ({printable(reason)})"


def failure_notes(group: Sequence[Record]) -> Iterator[str]:
    """Yield each status and reason once, with its cells."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for model, curve in by_model(group).items():
        for record in curve:
            if record.status != "ok":
                cells = reasons.setdefault((record.status, record.reason), {})
                cells.setdefault(model, []).append(record.cell.resolution.label)
    for (status, reason), cells in reasons.items():
        where = "; ".join(f"{model} at {', '.join(sizes)}" for model, sizes in cells.items())
        yield f"{status}: {where}" + (f" ({printable(' '.join(reason.split()))})" if reason else "")
