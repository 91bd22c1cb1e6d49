"""``sema-bench evaluate``: accuracy of a checkpoint over resolutions, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.measure import Device, DType, Layout, Threads, start_run
from sema_bench.cli.option_values import choices, integers
from sema_bench.cli.results import Out
from sema_bench.errors import UsageError
from sema_bench.spec.cell import DTYPES, LAYOUTS
from sema_bench.spec.suite import check_model, parse_suite
from sema_bench.spec.weights_source import check_weights_of


def evaluate(
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model, e.g. swin_tiny or timm:resnet18.")] = None,
    checkpoint: Annotated[str | None, typer.Option(metavar="FILE", help="Its weights; never unpickled.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="digits:field, folder:PATH, flat:PATH,labels=FILE, tar:…, hub:….")
    ] = None,
    res: Annotated[
        str, typer.Option(metavar="RANGE", help="Image sizes, as for scale; whatever the training was at.")
    ] = "224",
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Images of one forward pass.")] = 32,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=256, help="Processes that prepare images; default: spare CPUs."),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    layout: Layout = None,
    threads: Threads = None,
    out: Out = "results",
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run's folder.")] = None,
) -> None:
    """Test a checkpoint on labelled images at each resolution: top-1 and top-5 with Wilson 95 % intervals.

    After Ctrl-C or kill -9: sema-bench run --resume RUN; what was seen is not seen again.
    """
    for option, value in (("--model", model), ("--checkpoint", checkpoint), ("--data", data)):
        if value is None:
            raise UsageError(f"evaluate needs {option}")
    assert model is not None
    assert checkpoint is not None
    name = check_model(model)
    check_weights_of(name, Path(checkpoint))
    body = {
        "name": "evaluate",
        "models": [name],
        "checkpoints": {name: checkpoint},
        "data": [data],
        "res": res,
        "probes": ["params", "macs", "accuracy"],
        "batch": [batch],
        "evaluation_batch": batch,
        "workers": workers,
        "device": device,
        "dtype": choices("dtype", dtype, DTYPES),
        "layout": choices("layout", layout, LAYOUTS),
        "threads": integers("--threads", threads),
    }
    given = {key: value for key, value in body.items() if value is not None}
    start_run(parse_suite(given, source="evaluate"), out, run)
