"""Write frames as CSV, Markdown and LaTeX: SI units, empty for missing values, no text that acts as code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.store.files import write_own
from sema_bench.store.table import shared_columns
from sema_bench.text.escape import for_csv, for_latex, for_markdown


def to_csv_text(frame: pd.DataFrame) -> str:
    """Write CSV with line feeds, full precision, and no text that acts as a formula."""
    texts = [name for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    guarded = frame.assign(**{str(name): frame[name].map(_guarded, na_action="ignore") for name in texts})
    return str(guarded.to_csv(index=False, lineterminator="\n"))


def _guarded(value: object) -> object:
    return for_csv(value) if isinstance(value, str) else value


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write ``frame`` to ``path`` whole or not at all; see ``write_own``."""
    write_own(path, to_csv_text(frame))


def to_markdown(frame: pd.DataFrame) -> str:
    """Write a GitHub Markdown table in which no text can become markup."""
    header, *rows = _table(frame, for_markdown)
    rule = ["---:" if right else "---" for right in _right_aligned(frame)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, rule, *rows))


def to_latex(frame: pd.DataFrame) -> str:
    r"""Write ``frame`` as a ``tabular`` with booktabs' rules (``\usepackage{booktabs}``), six digits per number."""
    header, *rows = _table(frame, for_latex)
    alignment = "".join("r" if right else "l" for right in _right_aligned(frame))
    lines = [f"{' & '.join(row)} \\\\" for row in rows]
    start = [f"\\begin{{tabular}}{{{alignment}}}", r"\toprule", f"{' & '.join(header)} \\\\", r"\midrule"]
    return "\n".join([*start, *lines, r"\bottomrule", r"\end{tabular}", ""])


def to_wide_latex(frame: pd.DataFrame) -> str:
    """Write a wide table without conditions that all rows share; a comment above it states them."""
    alike = shared_columns(frame, ["run", *(name for name in IDENTITY_FIELDS if name != "model")])
    shown = [name for name in alike if frame[name].notna().any()]
    stated = ", ".join(f"{for_latex(name)} {_table_cell(frame[name].iloc[0], for_latex)}" for name in shown)
    return (f"% in every row: {stated}\n" if stated else "") + to_latex(frame.drop(columns=alike))


def _right_aligned(frame: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]


def _table(frame: pd.DataFrame, escape: Callable[[str], str]) -> Iterator[list[str]]:
    yield [escape(str(name)) for name in frame.columns]
    for row in frame.itertuples(index=False, name=None):
        yield [_table_cell(value, escape) for value in row]


def _table_cell(value: Any, escape: Callable[[str], str]) -> str:
    """Write one value: a number with six digits, a whole number with all its digits."""
    if pd.isna(value):
        return ""
    if not isinstance(value, float):
        return escape(str(value))
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else format(value, ".6g")
