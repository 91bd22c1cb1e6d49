"""Read a run from Python, with its cells, exponents and comparisons as data frames."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sema_bench.analysis.comparison import compare
from sema_bench.analysis.corruption import corruption_errors, uncorrupted
from sema_bench.analysis.pooled import pool_weights
from sema_bench.analysis.scaling import SCALING_COLUMNS, analyse
from sema_bench.errors import unknown_name
from sema_bench.report.comparison import comparison_frame
from sema_bench.report.corruption import corruption_frame
from sema_bench.spec.metrics import METRICS
from sema_bench.store.load import load_runs
from sema_bench.store.stored_run import StoredRun
from sema_bench.store.table import records_frame, rows_frame


class LoadedRun(StoredRun):
    """A run read from disk; ``records`` holds the latest record of each cell, with every sample."""

    def table(self) -> pd.DataFrame:
        """Make the table of ``table.csv``: one row for each cell, failures included, in SI units."""
        return records_frame(self.records)

    def scaling(self) -> pd.DataFrame:
        """Make the table of ``scaling.csv``: the growth of each metric of each model, with 95 % intervals."""
        return rows_frame(analyse(pool_weights(uncorrupted(self.records))).rows(), columns=SCALING_COLUMNS)

    def corruption(self, reference: str = "") -> pd.DataFrame:
        """Make the table of ``corruption.csv``: errors relative to ``reference``, empty for the run's first model."""
        return corruption_frame(corruption_errors(self.records, reference))

    def compare(
        self,
        other: StoredRun,
        *,
        metric: str = "throughput_images_per_s",
        allow: Sequence[str] = (),
        margin: float = 0.03,
    ) -> pd.DataFrame:
        """Compare ``other`` with this run, cell by cell, as ``sema-bench compare --csv`` does.

        Args:
            other: the run to compare with this one.
            metric: the metric to compare.
            allow: fields of the identity, such as ``dtype`` or ``hardware``, that may differ.
            margin: ratios within this share of 1 count as the same.

        Raises:
            UsageError: the machines differ, or there is no such metric.
        """
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
        return comparison_frame([compare(self, other, metric=metric, allow=allow)], margin=margin)


def read_run(path: str | Path, *, root: str | Path = "results") -> LoadedRun:
    """Read a run.

    Args:
        path: a run's folder, its name in ``root``, or a JSON file of pytest-benchmark.
        root: results folder.

    Raises:
        UsageError: there is no such run, or it has no records.
        StoreError: it cannot be read.
    """
    (run,) = load_runs(Path(root), [str(path)])
    return LoadedRun(**{each.name: getattr(run, each.name) for each in dataclasses.fields(run)})
