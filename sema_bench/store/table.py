"""Make pandas frames of records: one row per cell, failures included, SI units, empty cells for missing values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from sema_bench.machine.disturbance import DISTURBED_SHARE
from sema_bench.spec.cell import AXES, IDENTITY_FIELDS
from sema_bench.spec.metrics import METRICS, Metric
from sema_bench.spec.record import Record
from sema_bench.text.plain_json import mapping

#: Type of an axis → pandas type; the nullable ones keep whole numbers whole beside empty cells.
_AXIS_TYPES = {str: "string", int: "Int64", bool: "boolean"}


def interval_columns(metric: Metric) -> dict[str, str]:
    """Map fields of Measurement to the columns of a metric's spread; empty unless it is a median or a share."""
    if metric.statistic in ("share", "paired"):
        return {key: f"{metric.name}_{key}" for key in ("ci_low", "ci_high")}
    if metric.statistic != "median":
        return {}
    stem = metric.name.removesuffix(metric.suffix)
    columns = {key: f"{stem}_{key}{metric.suffix}" for key in ("ci_low", "ci_high", "p10", "p90")}
    return {**columns, "samples": f"{stem}_samples"}


def column_types() -> dict[str, str]:
    """Map every column, in order, to its pandas type; pass it as ``dtype`` to ``pandas.read_csv``."""
    types = {axis.name: _AXIS_TYPES[axis.type] for axis in AXES.values()}
    types |= {"status": "string", "reason": "string"}
    for metric in METRICS.values():
        types[metric.name] = "Int64" if metric.is_whole else "Float64"
        for key, column in interval_columns(metric).items():
            types[column] = "Int64" if key == "samples" else "Float64"
    types |= {"disturbances": "string", "stop_reason": "string", "warmups": "Int64", "warm": "boolean"}
    types |= dict.fromkeys(("interleaved_with", "reference", "uncovered_operators", "started_at"), "string")
    return types | {"duration_s": "Float64", "environment": "string"}


def shared_columns(frame: pd.DataFrame, among: Iterable[str]) -> list[str]:
    """List the columns in ``among`` that are empty or have one value in all rows."""
    return [name for name in among if name in frame and frame[name].nunique(dropna=False) <= 1]


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Make one row per record with the columns and types of ``column_types``, even without records."""
    types = column_types()
    rows = [_row(record) for record in records]
    return frame_of({name: ([row.get(name) for row in rows], kind) for name, kind in types.items()})


def rows_frame(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Make a frame of dict rows; whole numbers stay whole beside empty cells. Without rows it needs ``columns``."""
    listed = list(rows)
    names = list(listed[0]) if columns is None and listed else list(columns or ())
    values = {name: [row[name] for row in listed] for name in names}
    kinds = {name: None if any(value is not None for value in column) else "string" for name, column in values.items()}
    return frame_of({name: (column, kinds[name]) for name, column in values.items()})


def frame_of(columns: Mapping[str, tuple[list[Any], str | None]]) -> pd.DataFrame:
    """Make a frame from the values of each column and their type in ``column_types``; None: infer it."""
    frame: pd.DataFrame = pd.DataFrame({name: pandas_column(*column) for name, column in columns.items()})
    return frame


def pandas_column(values: list[Any], kind: str | None) -> Any:
    """Make a pandas array of a type of ``column_types``; None is empty."""
    make: Any = pd.array  # its stubs accept names of types only as literals
    return make(values, dtype=kind)


def _row(record: Record) -> dict[str, object]:
    # A CSV cannot hold both an empty text and an empty cell.
    row: dict[str, object] = {name: v for name in IDENTITY_FIELDS if (v := getattr(record.cell, name)) != ""}
    row |= {"status": record.status, "reason": record.reason or None}
    for name, measurement in record.measurements.items():
        row[name] = round(measurement.value) if METRICS[name].is_whole else measurement.value
        columns = interval_columns(measurement.definition)
        count = columns.pop("samples", None)
        row |= {column: getattr(measurement, key) for key, column in columns.items()}
        if count and measurement.samples:
            row[count] = len(measurement.samples)
    if "throughput_images_per_s" in row:  # it has the samples of the latency
        row["throughput_samples"] = row.get("latency_samples")
    stop, warmups, warm = (record.details.get(key) for key in ("stop_reason", "warmups", "warm"))
    return row | {
        "disturbances": "; ".join(f"{reason} ({count})" for reason, count in disturbances(record).items()) or None,
        "stop_reason": None if stop is None else str(stop),
        "warmups": warmups if isinstance(warmups, int) and abs(warmups) < 2**63 else None,
        "warm": warm if isinstance(warm, bool) else None,
        "interleaved_with": _names(record.details.get("interleaved_with")),
        "reference": _names(record.details.get("reference")),
        "uncovered_operators": _names(record.details.get("uncovered_operators")),
        "started_at": record.started_at or None,
        "duration_s": float(record.duration_s),
        "environment": record.environment or None,
    }


def disturbances(record: Record) -> dict[str, int]:
    """Map each disturbance of a cell to the number of its sample windows."""
    counts = mapping(mapping(record.details.get("telemetry")).get("disturbances"))
    return {str(reason): count for reason, count in counts.items() if isinstance(count, int)}


def stayed_disturbed(record: Record) -> bool:
    """Check whether more than half of the sample windows of a cell were disturbed."""
    return (record.value("disturbed_share") or 0.0) > DISTURBED_SHARE


def is_launch_bound(record: Record) -> bool:
    """Check whether the host's time to launch kernels bounds a cell on CUDA."""
    return record.details.get("launch_bound") is True


def _names(value: object) -> str | None:
    if not value:
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
