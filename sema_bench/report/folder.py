"""What a run folder holds beside its records, all derived from them and written anew each time.

table.csv (one row per cell), scaling.csv (exponents), crossovers.csv, report.txt (the tables as printed) and plots/.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from sema_bench.analysis.crossover import CROSSOVER_COLUMNS
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.scaling import SCALING_COLUMNS, analyse
from sema_bench.report.export import write_csv
from sema_bench.report.plot import write_plots
from sema_bench.report.table import render
from sema_bench.spec.record import Record
from sema_bench.store.files import write_own
from sema_bench.store.table import records_frame, rows_frame
from sema_bench.text.console import SafeConsole

_REPORT_WIDTH = 120


def write_outputs(folder: Path, records: Sequence[Record]) -> None:
    """Write everything that is derived from ``records`` into the run's ``folder``.

    Raises:
        StoreError: a file cannot be written; what stood there before still stands.
    """
    write_csv(records_frame(records), folder / "table.csv")
    records = pool_weights(records)
    scaling = analyse(records)
    write_csv(rows_frame(scaling.rows(), columns=SCALING_COLUMNS), folder / "scaling.csv")
    write_csv(rows_frame(scaling.crossover_rows(), columns=CROSSOVER_COLUMNS), folder / "crossovers.csv")
    text = io.StringIO()
    render(records, SafeConsole(file=text, width=_REPORT_WIDTH, color_system=None))
    write_own(folder / "report.txt", text.getvalue())
    write_plots(records, folder / "plots")
