"""Tables for other programs and for papers: one row per cell, failures included, SI units, empty for missing values.

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

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.store.files import write_own
from sema_bench.store.table import shared_columns
from sema_bench.text.escape import for_csv, for_latex, for_markdown


def to_csv_text(frame: pd.DataFrame) -> str:
    """Write CSV: UTF-8, line feeds, full precision, empty for missing values, no text that is a formula."""
    texts = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    guarded = frame.assign(**{str(name): frame[name].map(_guarded_text, na_action="ignore") for name in texts})
    return str(guarded.to_csv(index=False, lineterminator="\n"))


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` to ``path`` whole or not at all; see ``write_own``."""
    write_own(path, to_csv_text(frame))


def to_markdown(frame: pd.DataFrame) -> str:
    """Write a GitHub Markdown table in which no text can become markup."""
    lines = [
        [for_markdown(str(name)) for name in frame.columns],
        ["---:" if right else "---" for right in _right_aligned(frame)],
        *([_table_cell(value, for_markdown) for value in row] for row in frame.itertuples(index=False, name=None)),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(frame: pd.DataFrame) -> str:
    r"""Write ``frame`` as a ``tabular`` with booktabs' rules (``\usepackage{booktabs}``), six digits a number."""
    rows = [[_table_cell(value, for_latex) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in _right_aligned(frame))}}}",
            r"\toprule",
            " & ".join(for_latex(str(name)) for name in frame.columns) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def to_wide_latex(frame: pd.DataFrame) -> str:
    """Write a wide table without conditions that all rows share; a comment above it states them."""
    alike = shared_columns(frame, ["run", *(name for name in IDENTITY_FIELDS if name != "model")])
    shown = [name for name in alike if frame[name].notna().any()]
    stated = ", ".join(f"{for_latex(name)} {_table_cell(frame[name].iloc[0], for_latex)}" for name in shown)
    return (f"% in every row: {stated}\n" if stated else "") + to_latex(frame.drop(columns=alike))


def rounded(value: float) -> str:
    """Write a number with six digits, a whole one with all of them."""
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else format(value, ".6g")


def _right_aligned(frame: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]


def _table_cell(value: Any, escape: Callable[[str], str]) -> str:
    if pd.isna(value):
        return ""
    return rounded(value) if isinstance(value, float) else escape(str(value))


def _guarded_text(value: object) -> object:
    return for_csv(value) if isinstance(value, str) else value
