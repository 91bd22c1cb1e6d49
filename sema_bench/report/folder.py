"""Write the files of a run folder that derive from its records.

table.csv (one row per cell), scaling.csv (exponents), crossovers.csv, corruption.csv (of corrupted images), report.txt
(the tables as printed) and plots/.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from pathlib import Path

from sema_bench.analysis.corruption import corruption_errors, is_corrupted, uncorrupted
from sema_bench.analysis.crossover import CROSSOVER_COLUMNS
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.scaling import SCALING_COLUMNS, analyse
from sema_bench.errors import StoreError
from sema_bench.report.corruption import corruption_frame
from sema_bench.report.export import write_csv
from sema_bench.report.plot import write_plots
from sema_bench.report.table import render
from sema_bench.spec.record import Record
from sema_bench.store.files import write_own
from sema_bench.store.table import records_frame, rows_frame
from sema_bench.text.console import UNLIMITED, SafeConsole, warn

#: Tables and plots of an unfinished run may take this share of its time.
_WRITING_SHARE = 0.01


class OutputWriter:
    """Renew tables and plots of a run; a failure here costs no measurement."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._due = -math.inf

    @property
    def is_due(self) -> bool:
        """True if writing again would take only a small share of the run's time."""
        return time.monotonic() >= self._due

    def renew(self, records: Sequence[Record]) -> None:
        """Write tables and plots of the records so far."""
        started = time.monotonic()
        try:
            self.finish(records)
        except StoreError as problem:
            warn(str(problem))
        ended = time.monotonic()
        self._due = ended + (ended - started) / _WRITING_SHARE

    def finish(self, records: Sequence[Record]) -> None:
        """Write tables and plots of all records; raise StoreError if a file cannot be written."""
        write_outputs(self._folder, records)


def write_outputs(folder: Path, records: Sequence[Record]) -> None:
    """Write all files that derive from ``records``; raise StoreError if one cannot be written."""
    write_csv(records_frame(records), folder / "table.csv")
    if any(map(is_corrupted, records)):
        write_csv(corruption_frame(corruption_errors(records)), folder / "corruption.csv")
    text = io.StringIO()
    render(records, SafeConsole(file=text, width=UNLIMITED, color_system=None), details=True)
    records = pool_weights(uncorrupted(records))
    scaling = analyse(records)
    write_csv(rows_frame(scaling.rows(), columns=SCALING_COLUMNS), folder / "scaling.csv")
    write_csv(rows_frame(scaling.crossover_rows(), columns=CROSSOVER_COLUMNS), folder / "crossovers.csv")
    write_own(folder / "report.txt", text.getvalue())
    write_plots(records, folder / "plots")
