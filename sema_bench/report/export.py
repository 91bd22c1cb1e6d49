"""Records as a table for other programs: one row per cell, failures included, SI units, empty where not measured.

Columns, in order:

- the identity of the cell (``IDENTITY_FIELDS``), then ``status`` and ``reason``;
- for each metric its value under its own name (``latency_s``);
- for each metric that is a share also ``top1_ci_low`` and ``top1_ci_high`` (Wilson 95 % interval);
- for each metric that is a median of samples also ``latency_ci_low_s`` and ``latency_ci_high_s`` (95 % interval
  of the median), ``latency_p10_s``, ``latency_p90_s`` and ``latency_samples`` (how many): the unit stays last;
- ``disturbances`` (what disturbed sample windows, and how many of them), ``stop_reason`` of sampling, ``warmups``
  (untimed forward passes before it) and whether they had become stable (``warm``), ``interleaved_with`` and
  ``uncovered_operators`` (names, separated by spaces), ``started_at``, ``duration_s``, ``environment`` (fingerprint).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from sema_bench.metrics import METRICS, Metric
from sema_bench.outgoing import for_csv, for_markdown
from sema_bench.schema import IDENTITY_FIELDS, Cell, Measurement, Record
from sema_bench.store import write_own
from sema_bench.telemetry.windows import DISTURBED_SHARE

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


def to_csv_text(frame: pd.DataFrame) -> str:
    """Return ``frame`` as CSV: UTF-8, line feeds, full precision, empty where missing, no text that is a formula."""
    text: str = _guarded(frame).to_csv(index=False, lineterminator="\n")
    return text


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` to ``path`` at once or not at all.

    Raises:
        StoreError: the disk is full or the folder is not writable; the old content is still there.
    """
    write_own(path, to_csv_text(frame))


def to_markdown(frame: pd.DataFrame) -> str:
    """Return ``frame`` as a GitHub Markdown table in which no text can become markup."""
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]
    lines = [
        [for_markdown(str(name)) for name in frame.columns],
        ["---:" if right else "---" for right in numeric],
        *([_markdown_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rounded(value: float) -> str:
    """Return a number with six digits; a whole one with all of them."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else format(value, ".6g")


def _markdown_cell(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return rounded(value) if isinstance(value, float) else for_markdown(str(value))


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


def _guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with text that can neither run as a formula nor break out of its row; numbers are left alone."""
    texts = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    guarded: pd.DataFrame = frame.assign(
        **{str(name): frame[name].map(_guarded_text, na_action="ignore") for name in texts}
    )
    return guarded


def _guarded_text(value: object) -> object:
    return for_csv(value) if isinstance(value, str) else value
