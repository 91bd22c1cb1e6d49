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

from pathlib import Path

import pandas as pd

from sema_bench.store.files import write_own
from sema_bench.text.escape import for_csv, for_markdown


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


def _guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with text that can neither run as a formula nor break out of its row; numbers are left alone."""
    texts = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    guarded: pd.DataFrame = frame.assign(
        **{str(name): frame[name].map(_guarded_text, na_action="ignore") for name in texts}
    )
    return guarded


def _guarded_text(value: object) -> object:
    return for_csv(value) if isinstance(value, str) else value
