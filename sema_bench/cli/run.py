"""``sema-bench run``: run a suite, or resume a run."""

from __future__ import annotations

from typing import Annotated

import typer

from sema_bench.cli.options import LimitOptions, MachineAxes, RunOptions, TargetOptions
from sema_bench.cli.runs import resume_run, run_new
from sema_bench.errors import UsageError
from sema_bench.spec.suite import load_suite, option_of, override


def run(
    *,
    suite: Annotated[
        str | None, typer.Argument(help="A suite file, e.g. suites/quick.toml, or the name of one.")
    ] = None,
    axes: MachineAxes,
    limits: LimitOptions,
    options: RunOptions,
    where: TargetOptions,
) -> None:
    """Run a suite: a TOML file that declares models, resolutions, axes and probes."""
    changes, target = {**axes.changes, **limits.changes}, where.target
    if options.resume is not None:
        given = [*map(option_of, changes), *(["suite"] if suite else [])]
        resume_run(options.resume, options, target, given=given)
    if suite is None:
        raise UsageError("name a suite to run (see `sema-bench list suites`), or a run with --resume")
    run_new(override(load_suite(suite), changes), options, target)
