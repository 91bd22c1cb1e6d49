"""Write runs in the formats of other programs, all with one table and one schema.

A wide table has one row for each model and its conditions, and a column for each value and resolution
(``latency_s@224x224``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from sema_bench import __version__
from sema_bench.errors import UsageError, unknown_name
from sema_bench.report.export import to_csv_text, to_latex, to_markdown
from sema_bench.spec.cell import AXES, IDENTITY_FIELDS
from sema_bench.spec.metrics import METRICS
from sema_bench.spec.record import Record
from sema_bench.store.pytest_benchmark_file import EXTRA_KEY, MACHINE_KEY
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import column_types, frame_of, interval_columns, records_frame
from sema_bench.text.escape import json_text

#: Default columns of a wide table, if measured.
WIDE_COLUMNS = ("latency_s", "throughput_images_per_s", "peak_memory_bytes", "macs", "top1")
_OTHER_COLUMNS = {
    "run": "name of the run",
    **{axis.name: axis.description for axis in AXES.values()},
    "status": "ok, skipped, oom, timeout, crashed or error",
    "reason": "why the status is not ok",
    "disturbances": "what disturbed sample windows, and how many of them",
    "stop_reason": "which limit ended the sampling",
    "warmups": "untimed forward passes before the sampling",
    "warm": "whether the untimed passes had become stable",
    "interleaved_with": "models sampled in turns with this one, separated by spaces",
    "reference": "model of the group that paired_ratio divides by",
    "uncovered_operators": "operators that no counter knows, separated by spaces",
    "started_at": "UTC time, ISO 8601",
    "duration_s": "wall time spent on the cell",
    "environment": "fingerprint of hardware and software",
}
_SPREAD = {
    "ci_low": "lower end of its 95 % interval",
    "ci_high": "upper end of its 95 % interval",
    "p10": "10th percentile of its samples",
    "p90": "90th percentile of its samples",
    "samples": "number of its samples",
}


def column_descriptions() -> dict[str, tuple[str, str, str]]:
    """Map each column to its pandas type, unit and description, in the order of the table."""
    metrics = {}
    for metric in METRICS.values():
        metrics[metric.name] = (metric.unit, f"{metric.summary} ({metric.statistic})")
        for key, column in interval_columns(metric).items():
            metrics[column] = ("1" if key == "samples" else metric.unit, f"{metric.name}: {_SPREAD[key]}")
    known = {name: metrics.get(name) or ("s" if name.endswith("_s") else "", _OTHER_COLUMNS[name]) for name in _types()}
    return {name: (kind, *known[name]) for name, kind in _types().items()}


def runs_frame(runs: Sequence[StoredRun], *, columns: Sequence[str] = (), wide: bool = False) -> pd.DataFrame:
    """Make a row for each cell of each run, or for each model and its conditions if ``wide``.

    ``columns`` gives the columns in this order; empty for all. An unknown column raises UsageError.
    """
    for name in columns:
        if name not in _types():
            raise unknown_name("column", name, _types())
    if len(set(columns)) != len(columns):
        raise UsageError(f"a column is listed twice: {', '.join(columns)}")
    frames = [records_frame(run.records).assign(run=run.name) for run in runs]
    frame: pd.DataFrame = pd.concat(frames, ignore_index=True).astype(_types())
    return _widened(frame, columns) if wide else frame[list(columns or _types())]


def _types() -> dict[str, str]:
    return {"run": "string", **column_types()}


def _widened(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    values = list(columns) or [name for name in WIDE_COLUMNS if frame[name].notna().any()]
    fixed = [name for name in ("run", *IDENTITY_FIELDS) if name not in ("height", "width")]
    if taken := [name for name in values if name in ("run", *IDENTITY_FIELDS)]:
        raise UsageError(f"a wide table spreads values over resolutions, and {taken[0]} is not a value")
    size = frame["height"].astype(str) + "x" + frame["width"].astype(str)
    sizes = list(dict.fromkeys(size.iloc[frame["height"].mul(frame["width"]).argsort(kind="stable")]))
    rows = frame.assign(_size=size).groupby(fixed, sort=False, dropna=False)
    spread = []
    for key, group in rows:
        row = dict(zip(fixed, key, strict=True))
        for value in values:
            row |= {f"{value}@{side}": number for side, number in zip(group["_size"], group[value], strict=True)}
        spread.append(row)
    names = [*fixed, *(f"{value}@{each}" for value in values for each in sizes)]
    types = {name: _types()[name.partition("@")[0]] for name in names}
    return frame_of({name: ([row.get(name) for row in spread], types[name]) for name in names})


def to_json(frame: pd.DataFrame) -> str:
    """Write the rows as a JSON list of objects, with null for missing values."""
    plain = frame.astype(object).where(frame.notna(), None)
    return json_text(list(plain.columns), plain.itertuples(index=False, name=None))


def to_parquet(frame: pd.DataFrame) -> bytes:
    """Write the rows as Parquet; raise UsageError without pyarrow."""
    content = io.BytesIO()
    try:
        frame.to_parquet(content, engine="pyarrow", index=False)
    except ImportError:
        raise UsageError("parquet needs pyarrow, which is not installed; pip install 'sema-bench[parquet]'") from None
    return content.getvalue()


def bencher_metrics(runs: Sequence[StoredRun]) -> str:
    """Write records in Bencher's metric format: cell (and its run, if there are several) → measure → value, bounds."""
    body: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        for record in run.records:
            measures = {}
            for name in record.measurements:
                if result := record.result(name):
                    measures[name] = {"value": result.value}
                    if result.ci_low is not None and result.ci_high is not None:
                        measures[name] |= {"lower_value": result.ci_low, "upper_value": result.ci_high}
            if measures:
                body[f"{run.name}/{record.cell.id}" if len(runs) > 1 else record.cell.id] = measures
    return json.dumps(body, indent=2, allow_nan=False) + "\n"


def to_pytest_benchmark(runs: Sequence[StoredRun]) -> str:
    """Write the timed cells in pytest-benchmark's JSON; failures are left out."""
    if any((run.hardware, run.software) != (runs[0].hardware, runs[0].software) for run in runs):
        raise UsageError(
            "these runs come from different machines, and pytest-benchmark knows one; export them separately"
        )
    hardware, software = (dict(runs[0].hardware), dict(runs[0].software)) if runs else ({}, {})
    body = {
        "machine_info": {
            "cpu": {"brand_raw": hardware.get("cpu"), "count": hardware.get("cpus")},
            "machine": hardware.get("machine"),
            "python_version": software.get("python"),
            "system": software.get("os"),
        },
        "commit_info": {},
        "benchmarks": [b for run in runs for r in run.records if (b := _benchmark(run, r))],
        "datetime": min((r.started_at for run in runs for r in run.records if r.started_at), default=""),
        "version": f"sema-bench {__version__}",
    }
    return json.dumps(body, indent=1, allow_nan=False) + "\n"


def _benchmark(run: StoredRun, record: Record) -> dict[str, Any] | None:
    latency = record.measurements.get("latency_s") if record.status == "ok" else None
    if latency is None:
        return None
    samples = sorted(latency.samples or (latency.value,))
    count = len(samples)
    mean = sum(samples) / count
    deviation = (sum((value - mean) ** 2 for value in samples) / (count - 1)) ** 0.5 if count > 1 else 0.0
    q1, q3 = map(float, pd.Series(samples).quantile([0.25, 0.75]))
    stats = {
        "min": samples[0],
        "max": samples[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": count,
        "median": latency.value,
        "iqr": q3 - q1,
        "q1": q1,
        "q3": q3,
        "iqr_outliers": 0,
        "stddev_outliers": 0,
        "outliers": "0;0",
        "ld15iqr": samples[0],
        "hd15iqr": samples[-1],
        "ops": 1 / mean if mean else 0.0,
        "total": sum(samples),
        "iterations": 1,
        "data": list(latency.samples),
    }
    return {
        "group": run.name,
        "name": f"{record.cell.model}[{record.cell.resolution}]",
        "fullname": f"{run.name}::{record.cell.id}",
        "params": {name: getattr(record.cell, name) for name in IDENTITY_FIELDS},
        "param": str(record.cell.resolution),
        "extra_info": {EXTRA_KEY: json.loads(record.to_json()), MACHINE_KEY: run.machine},
        "options": {},
        "stats": stats,
    }


#: Formats that are written from a table; ``bmf`` and ``pytest-benchmark`` need records.
FORMATS: dict[str, Callable[[pd.DataFrame], str | bytes]] = {
    "csv": to_csv_text,
    "json": to_json,
    "markdown": to_markdown,
    "latex": to_latex,
    "parquet": to_parquet,
}
RECORD_FORMATS: dict[str, Callable[[Sequence[StoredRun]], str]] = {
    "bmf": bencher_metrics,
    "pytest-benchmark": to_pytest_benchmark,
}
