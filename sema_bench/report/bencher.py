"""Records as Bencher Metric Format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Record


def bencher_metrics(runs: Mapping[str, Sequence[Record]]) -> str:
    """Return records in Bencher's metric format: benchmark → measure → value and bounds; failed cells have none.

    A benchmark is called by its cell, and by its run, too, where there are several.
    """
    body: dict[str, dict[str, dict[str, float]]] = {}
    for run, record in ((run, record) for run, records in runs.items() for record in records):
        found = {}
        for name, measurement in record.measurements.items():
            if record.result(name) is None:
                continue
            entry = {"value": measurement.value}
            if measurement.ci_low is not None and measurement.ci_high is not None:
                entry |= {"lower_value": measurement.ci_low, "upper_value": measurement.ci_high}
            found[METRICS[name].name] = entry
        if found:
            body[f"{run}/{record.cell.id}" if len(runs) > 1 else record.cell.id] = found
    return json.dumps(body, indent=2, allow_nan=False) + "\n"
