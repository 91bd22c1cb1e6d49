"""``sema-bench evaluate``: measure the accuracy of a checkpoint over resolutions, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.option_values import axis_changes, given
from sema_bench.cli.options import EvaluateAxes, Out, RunName, RunOptions, Workers
from sema_bench.cli.runs import start_run
from sema_bench.spec.axes import MEASURED
from sema_bench.spec.cell import AXES, check_model
from sema_bench.spec.suite import parse_suite
from sema_bench.spec.weights_source import check_weights_of

_PROBE = dataclasses.replace(AXES["readout"], option="--probe")
_option = functools.partial(typer.Option, rich_help_panel=MEASURED)


def evaluate(
    *,
    model: Annotated[str, _option(metavar="NAME", help="Model, e.g. swin_tiny or timm:resnet18.")],
    data: Annotated[
        str,
        _option(metavar="DATA", help="digits:field, folder:PATH, flat:PATH,labels=FILE, or tar:, npz:, idx:, hub:."),
    ],
    res: Annotated[
        str, _option(metavar="SIZES", help="Image sizes, as for scale; they may differ from the training size.")
    ] = "224",
    checkpoint: Annotated[
        str | None,
        _option(
            metavar="FILE",
            help="Its weights; code in the file is never run. A probe can do without: it tests random weights then.",
        ),
    ] = None,
    probe: Annotated[
        str | None,
        _option(
            metavar="LIST",
            help="Classify by a probe of frozen features, fitted to the training images: linear, knn; or by the head.",
        ),
    ] = None,
    batch: Annotated[int, _option(metavar="N", min=1, help="Images per forward pass.")] = 32,
    workers: Workers = None,
    axes: EvaluateAxes,
    out: Out = "results",
    run: RunName = None,
) -> None:
    """Test a checkpoint on labelled images at each resolution: top-1 and top-5 with Wilson 95 % intervals.

    After Ctrl-C or kill -9, resume with sema-bench run --resume RUN; no image is evaluated twice.
    """
    name = check_model(model)
    if checkpoint:
        check_weights_of(name, Path(checkpoint))
    body = {
        "name": "evaluate",
        "models": [name],
        "data": [data],
        "res": res,
        "probes": ["params", "macs", "accuracy"],
        "batch": [batch],
        "evaluation_batch": batch,
        **given(workers=workers, checkpoints=checkpoint and {name: checkpoint}),
        **(axis_changes([_PROBE], probe) if probe is not None else {}),
        **axes.changes,
    }
    start_run(parse_suite(body, source="evaluate"), RunOptions(out=out, run=run))
