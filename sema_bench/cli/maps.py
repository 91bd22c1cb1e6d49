"""``sema-bench maps``: what one token looks at, as a picture."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.results import LocalOut
from sema_bench.errors import UsageError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import check_model


def maps(
    model: Annotated[str, typer.Option(metavar="NAME", help="Model, e.g. sema_micro[sema,head=max].")],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its weights; without them they are random.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images, as for evaluate; default: the scenes trained on, or digits:cue."),
    ] = None,
    index: Annotated[int, typer.Option(metavar="N", min=0, help="Which of them.")] = 0,
    res: Annotated[str, typer.Option(metavar="SIZE", help="Size of the image, 128 or 96x160.")] = "128",
    token: Annotated[
        str, typer.Option(metavar="Y,X", help="Where the token is, as shares of height and width.")
    ] = "0.5,0.5",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Images that the field is averaged over.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Of random weights.")] = 0,
    out: LocalOut = Path("results"),
    run: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run's folder.")] = None,
) -> None:
    """Draw one token's attention in every layer, and its effective receptive field."""
    name, where = check_model(model), _share_pair(token)
    weights = Path(checkpoint) if checkpoint else None
    spec = parse_data(data or _trained_on(weights) or "digits:cue")
    sizes = parse_resolutions(res)
    if len(sizes) != 1:
        raise UsageError(f"--res: a picture is of one size; got {len(sizes)} ({res!r})")
    spec.check_size(sizes[0])
    from sema_bench import __version__
    from sema_bench.spec.record import SCHEMA_VERSION
    from sema_bench.store.files import utc_now, write_own
    from sema_bench.store.run_folder import RunFolder, check_free
    from sema_bench.studies.maps.runs import draw_maps

    check_free(out, run)
    size = (sizes[0].height, sizes[0].width)
    pictures = draw_maps(name, weights, spec, index, size, where, samples=samples, seed=seed)
    metadata = {
        "schema_version": SCHEMA_VERSION,
        "sema_bench": __version__,
        "command": shlex.join(["sema-bench", *sys.argv[1:]]),
        "created_at": utc_now(),
    }
    folder = RunFolder.create(out, "maps", run, metadata=metadata)
    for kind, picture in pictures.items():
        write_own(folder.path / "plots" / f"maps.{kind}", picture)
        typer.echo(str(folder.path / "plots" / f"maps.{kind}"))


def _trained_on(checkpoint: Path | None) -> str:
    """Return the scenes that a checkpoint says it was trained on; empty where it does not say, or means files."""
    if checkpoint is None:
        return ""
    from sema_bench.spec.weights_source import read_about

    told = str(read_about(checkpoint).get("data", ""))
    return told if told.startswith("digits:") else ""


def _share_pair(text: str) -> tuple[float, float]:
    try:
        y, x = (float(part) for part in text.split(","))
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError
    except ValueError:
        raise UsageError(f"--token takes two shares from 0 to 1, such as 0.5,0.25; got {text!r}") from None
    return y, x
