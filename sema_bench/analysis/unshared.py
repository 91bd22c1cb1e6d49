"""Explain why two runs have no cell to compare."""

from __future__ import annotations

from collections.abc import Sequence

from sema_bench.analysis.comparison import Comparison
from sema_bench.spec.record import Record
from sema_bench.store.stored_run import StoredRun

_NAMED = 3


def why_nothing_compares(base: StoredRun, other: StoredRun, comparison: Comparison, *, advice: str) -> str:
    """Explain why two runs share no ratio; ``advice`` says what to do if the identities of rows differ."""
    if why := _why_none_is_ok(base) or _why_none_is_ok(other):
        return why
    if refused := comparison.unmatched_as("refused"):
        others = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
        return f"{refused[0].cell.model}: {refused[0].reason}{others}; {advice}"
    for first in comparison.unmatched_as("unmeasured"):
        shared = _shared_metrics(base.records, other.records)
        both = f"; both have {', '.join(shared[:_NAMED])}" if shared else ""
        size = first.cell.resolution.label
        return f"{first.cell.model} at {size}, {first.reason}; --metric NAME compares another{both}"
    sides = "; ".join(f"{run.name} has {_models_at_sizes(run.records)}" for run in (base, other))
    return f"the runs have no model at the same size in common: {sides}"


def _why_none_is_ok(run: StoredRun) -> str:
    """Say how the first cell of a run failed if all of them failed; else return ""."""
    if any(record.status == "ok" for record in run.records):
        return ""
    first = run.records[0]
    failure = f"{first.cell.model} at {first.cell.resolution.label}: {first.status}, {first.reason}"
    if len(run.records) == 1:
        return f"the only cell of {run.name} did not end well ({failure}); measure that run again"
    return f"none of the {len(run.records)} cells of {run.name} ended well ({failure}); measure that run again"


def _shared_metrics(base: Sequence[Record], other: Sequence[Record]) -> list[str]:
    one, two = ({name for r in records for name in r.measurements if r.result(name)} for records in (base, other))
    usual = ("latency_s", "throughput_images_per_s", "macs", "params", "top1")
    return [*(name for name in usual if name in one & two), *sorted((one & two) - {*usual})]


def _models_at_sizes(records: Sequence[Record]) -> str:
    columns = zip(*((record.cell.model, record.cell.resolution.label) for record in records), strict=True)
    return " at ".join(_listed(list(dict.fromkeys(column))) for column in columns)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
