"""Records as a pandas frame: one row per cell, failures included, SI units, empty where not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from sema_bench.machine.disturbance import DISTURBED_SHARE
from sema_bench.spec.cell import IDENTITY_FIELDS, Cell
from sema_bench.spec.metrics import METRICS, Metric
from sema_bench.spec.record import Measurement, Record

#: Annotation of a Cell field → pandas type; the nullable ones keep whole numbers whole beside empty cells.
_IDENTITY_TYPES = {"str": "string", "int": "Int64", "bool": "boolean"}


def interval_columns(metric: Metric) -> dict[str, str]:
    """Return field of Measurement → column for the spread of ``metric``; empty unless it is a median or a share."""
    if metric.statistic == "share":
        return {key: f"{metric.name}_{key}" for key in ("ci_low", "ci_high")}
    if metric.statistic != "median":
        return {}
    suffix, stem = metric.suffix, metric.name.removesuffix(metric.suffix)
    return {key: f"{stem}_{key}{suffix}" for key in ("ci_low", "ci_high", "p10", "p90")} | {
        "samples": f"{stem}_samples"
    }


def column_types() -> dict[str, str]:
    """Return every column and its pandas type, in order; pass it as ``dtype`` to ``pandas.read_csv``."""
    types = {f.name: _IDENTITY_TYPES[str(f.type)] for f in fields(Cell)}
    types |= {"status": "string", "reason": "string"}
    for metric in METRICS.values():
        types[metric.name] = "Int64" if metric.is_whole else "Float64"
        for key, column in interval_columns(metric).items():
            types[column] = "Int64" if key == "samples" else "Float64"
    types |= {"disturbances": "string", "stop_reason": "string", "warmups": "Int64", "warm": "boolean"}
    types |= dict.fromkeys(("interleaved_with", "uncovered_operators", "started_at"), "string")
    return types | {"duration_s": "Float64", "environment": "string"}


def shared_columns(frame: pd.DataFrame, among: Iterable[str]) -> list[str]:
    """Return those of the columns ``among`` that say the same in every row, or nothing."""
    return [name for name in among if name in frame and frame[name].nunique(dropna=False) <= 1]


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row per record with the columns and types of ``column_types``; also with no records at all."""
    types = column_types()
    rows = [_row(record) for record in records]
    columns = {
        name: pd.array([row.get(name) for row in rows], dtype=kind)  # type: ignore[call-overload]
        for name, kind in types.items()
    }
    frame: pd.DataFrame = pd.DataFrame(columns)
    return frame


def rows_frame(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return dict rows as a frame; whole numbers stay whole beside empty cells.

    Without ``columns`` they are those of the first row. ``SCALING_COLUMNS`` for ``Scaling.rows`` and
    ``CROSSOVER_COLUMNS`` for its ``crossover_rows`` give a run without any row its header.
    """
    kept = list(rows)
    names = list(kept[0]) if columns is None and kept else list(columns or ())
    values = {name: [row[name] for row in kept] for name in names}
    frame: pd.DataFrame = pd.DataFrame({name: pd.array(v, dtype=_kind(v)) for name, v in values.items()})  # type: ignore[call-overload]
    return frame


def _kind(values: Iterable[object]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "Float64" if kinds and kinds <= {int, float} else "string"


def _row(record: Record) -> dict[str, object]:
    row: dict[str, object] = {name: _or_none(getattr(record.cell, name)) for name in IDENTITY_FIELDS}
    row |= {"status": record.status, "reason": record.reason or None}
    for name, measurement in record.measurements.items():
        row[name] = round(measurement.value) if METRICS[name].is_whole else measurement.value
        row |= _spread(measurement)
    if "throughput_images_per_s" in row:  # made of the samples of latencies
        row["throughput_samples"] = row.get("latency_samples")
    stop, warmups, warm = (record.details.get(key) for key in ("stop_reason", "warmups", "warm"))
    return row | {
        "disturbances": "; ".join(f"{reason} ({count})" for reason, count in disturbances(record).items()) or None,
        "stop_reason": None if stop is None else str(stop),
        "warmups": warmups if isinstance(warmups, int) and abs(warmups) < 2**63 else None,
        "warm": warm if isinstance(warm, bool) else None,
        "interleaved_with": _names(record.details.get("interleaved_with")),
        "uncovered_operators": _names(record.details.get("uncovered_operators")),
        "started_at": record.started_at or None,
        "duration_s": float(record.duration_s),
        "environment": record.environment or None,
    }


def _or_none(value: object) -> object:
    """Return None for an empty text: a CSV does not tell the two apart."""
    return None if value == "" else value


def disturbances(record: Record) -> dict[str, int]:
    """Return what disturbed the sample windows of a cell → how many of them."""
    telemetry = record.details.get("telemetry")
    found = telemetry.get("disturbances") if isinstance(telemetry, Mapping) else None
    counts = found.items() if isinstance(found, Mapping) else ()
    return {str(reason): count for reason, count in counts if isinstance(count, int)}


def stayed_disturbed(record: Record) -> bool:
    """Tell whether more than half of the sample windows of a cell were disturbed."""
    return (record.value("disturbed_share") or 0.0) > DISTURBED_SHARE


def _names(value: object) -> str | None:
    """Join a list of names with spaces; None where there is none."""
    if not value:
        return None
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _spread(measurement: Measurement) -> dict[str, object]:
    columns = interval_columns(measurement.definition)
    values = {column: getattr(measurement, key) for key, column in columns.items() if key != "samples"}
    if "samples" in columns and measurement.samples:
        values[columns["samples"]] = len(measurement.samples)
    return values
