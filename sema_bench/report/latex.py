"""Tables for papers: booktabs, numbers right, nothing in a name that TeX would take for a command."""

from __future__ import annotations

import pandas as pd

from sema_bench.report.export import rounded
from sema_bench.spec.cell import IDENTITY_FIELDS
from sema_bench.store.table import shared_columns
from sema_bench.text.escape import for_latex


def to_latex(frame: pd.DataFrame) -> str:
    r"""Return ``frame`` as a ``tabular`` with booktabs' rules (``\usepackage{booktabs}``), six digits a number."""
    numeric = [pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind) for kind in frame.dtypes]
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join(
        [
            f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
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
    """Return a wide table without the conditions that are alike in all of its rows; a comment above it states them."""
    alike = shared_columns(frame, ["run", *(name for name in IDENTITY_FIELDS if name != "model")])
    told = [name for name in alike if frame[name].notna().any()]
    stated = ", ".join(f"{for_latex(name)} {_cell(frame[name].iloc[0])}" for name in told)
    return (f"% in every row: {stated}\n" if stated else "") + to_latex(frame.drop(columns=alike))


def _cell(value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return rounded(value) if isinstance(value, float) else for_latex(str(value))
