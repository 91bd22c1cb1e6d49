"""Write the remarks below the tables of a run: precision, what counts leave out, disturbances, failures."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from sema_bench.analysis.conditions import by_model
from sema_bench.analysis.pooled import seeds_of
from sema_bench.spec.cell import AXES
from sema_bench.spec.metrics import ACCURACIES, METRICS
from sema_bench.spec.record import Record
from sema_bench.spec.units import counted
from sema_bench.store.table import disturbances, is_launch_bound, stayed_disturbed
from sema_bench.text.escape import printable
from sema_bench.text.plain_json import mapping


def accuracy_notes(group: Sequence[Record]) -> Iterator[str]:
    """Describe the interval of accuracy, and name unreadable images."""
    metric = next((name for name in ACCURACIES if any(record.result(name) for record in group)), "")
    tested = [record for record in group if record.result(metric)]
    if not tested:
        return
    seeds = max(map(seeds_of, tested))
    spread = "half of Wilson's interval" if metric == "top1" else "half of a bootstrap interval over images"
    if seeds > 1:
        spread = f"mean of {seeds} seeds, half of Student's t interval over them"
    images = max(record.value("evaluated_images") or 0 for record in tested)
    yield f"{METRICS[metric].short}: {spread}, 95%; {images:.0f} images"
    facts = [mapping(record.details.get("accuracy")) for record in tested]
    fitted = [each for fact in facts if (each := mapping(fact.get("readout")))]
    if fitted:
        on = "; ".join(dict.fromkeys(f"{each.get('features')} ({each.get('channels')} values)" for each in fitted))
        probe, count = AXES["readout"].word(tested[0].cell.readout), fitted[0].get("training_images")
        yield printable(f"{probe} on {on}, fitted to {count} training images")
    if random := sum(each.get("weights") == "random" for each in fitted):
        yield f"warning: the weights are random in {counted(random, 'tested cell')}, for lack of a checkpoint"
    if dropped := dict.fromkeys(str(name) for each in facts for name in _listed(each.get("weights_dropped"))):
        yield f"weights of the checkpoint that the model does not have: {printable(', '.join(dropped))}"
    unreadable = [record.value("unreadable_images") or 0 for record in tested]
    if most := max(unreadable):
        named = _listed(facts[unreadable.index(most)].get("unreadable"))
        first = f", {printable(str(named[0]))} first" if named else ""
        yield f"warning: {most:.0f} images could not be read and are left out{first}"


def _listed(value: object) -> Sequence[object]:
    """Return a detail of a record if it is a list, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def precision_note(group: Sequence[Record]) -> str:
    """Say how wide the intervals of latency are, and how many cells have none."""
    timed = [(r.cell, m) for r in group if (m := r.result("latency_s")) and m.value > 0]
    widths = [
        ((m.ci_high - m.ci_low) / 2 / m.value, cell)
        for cell, m in timed
        if m.ci_low is not None and m.ci_high is not None
    ]
    without = len(timed) - len(widths)
    if not widths:
        return f"{counted(without, 'cell')} without interval: too few samples for a rank" if without else ""
    missing = f"; {without} without" if without else ""
    widest, worst = max(widths, key=lambda pair: pair[0])
    middle = statistics.median_high(width for width, _ in widths)
    where = f"{worst.model} at {worst.resolution.label}"
    most = f"±{widest:.1%}" if widest <= 1 else "beyond ±100%"
    typical = f"±{middle:.1%}"
    spread = f"{typical} typically, {most} at worst" if typical != most else most
    return f"intervals: {spread} ({where}){missing}"


def forecast_note(group: Sequence[Record]) -> str:
    """Compare predicted with measured memory."""
    ratios = [
        predicted / measured
        for record in group
        if (predicted := record.value("predicted_peak_bytes")) and (measured := record.value("peak_memory_bytes"))
    ]
    if not ratios:
        return ""
    low, high = min(ratios), max(ratios)
    return f"predicted peak memory is {low:.3f} to {high:.3f} of the measured one, {len(ratios)} cells"


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
        yield f"{total - trainable:,.0f} of {total:,.0f} parameters are frozen; params counts the others"
    if untraced := mapping(record.details.get("untraced")):
        reasons = "; ".join(f"{source}: {reason}" for source, reason in untraced.items())
        counted = "MACs lack a source" if record.result("macs") else "MACs could not be counted"
        yield f"{counted} ({printable(reasons)})"
    if uncovered := _listed(record.details.get("uncovered_operators")):
        yield f"no counter knows {printable(', '.join(map(str, uncovered)))}; MACs do not include their cost"
    if pyramid := record.details.get("pyramid"):
        yield printable(str(pyramid))
    yield from (printable(str(note)) for note in _listed(record.details.get("counting_notes")))


def disturbance_notes(group: Sequence[Record]) -> Iterator[str]:
    """Name cells with more than half of their sample windows disturbed, and the main disturbance."""
    cells: dict[str, list[str]] = {}
    for model, curve in by_model(group).items():
        for record in filter(stayed_disturbed, curve):
            reason = next(iter(disturbances(record)), "unknown")
            cells.setdefault(reason, []).append(f"{model} at {record.cell.resolution.label}")
    for reason, where in cells.items():
        yield f"! disturbed in more than half of its sample windows: {'; '.join(where)} ({printable(reason)})"


def launch_notes(group: Sequence[Record]) -> Iterator[str]:
    """Name cells whose latency is the host's time to launch kernels; note if the compiler tuned less than asked."""
    bound = [f"{r.cell.model} at {r.cell.resolution.label}" for r in group if is_launch_bound(r)]
    if bound:
        yield (
            f"~ bound by kernel launches: {'; '.join(bound)} (the card waits for the host: latency shows the number of "
            "kernels, not their work; compare with --mode cuda-graphs or a larger --batch)"
        )
    if any(record.details.get("products_tuned") is False for record in group):
        yield "compile-max-autotune did not tune matrix products: the compiler finds this card too small"


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
