"""``sema-bench scale``: sweep models over resolutions."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.option_values import items
from sema_bench.cli.options import LimitOptions, RunOptions, SweepAxes, TargetOptions
from sema_bench.spec.axes import MEASURED
from sema_bench.spec.suite import check_probe, load_suite, option_of, override


def scale(
    *,
    axes: SweepAxes,
    probes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Probes to run; see `sema-bench list probes`.", rich_help_panel=MEASURED),
    ] = None,
    limits: LimitOptions,
    options: RunOptions,
    where: TargetOptions,
) -> None:
    """Sweep models over resolutions; write a table, plots and scaling exponents.

    Defaults come from suites/scaling.toml: six models, 224 to 1024 pixels, --precision 0.02, --time-limit 4.
    """
    from sema_bench.cli.runs import resume_run, run_new  # loads pandas and matplotlib, which --help does without

    changes = {**axes.changes, **limits.changes}
    if probes is not None:
        changes["probes"] = [check_probe(name) for name in items(probes)]
    target = where.target
    if options.resume is not None:
        resume_run(options.resume, options, target, given=map(option_of, changes))
    run_new(override(load_suite("scaling"), changes), options, target)
