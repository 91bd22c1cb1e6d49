"""``sema-bench maps``: draw what one token attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.option_values import one_size
from sema_bench.cli.options import LocalOut, RunName
from sema_bench.errors import UsageError
from sema_bench.spec.cell import check_model
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.weights_source import read_about
from sema_bench.store.files import write_own
from sema_bench.store.run_folder import RunFolder, check_free, creation_facts


def maps(
    model: Annotated[str, typer.Option(metavar="NAME", help="Model, e.g. sema_micro[sema,head=max].")],
    checkpoint: Annotated[str | None, typer.Option(metavar="FILE", help="Its weights; default: random ones.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images, as for evaluate; default: those of the training, or digits:cue."),
    ] = None,
    index: Annotated[int, typer.Option(metavar="N", min=0, help="Index of the image.")] = 0,
    res: Annotated[str, typer.Option(metavar="SIZE", help="Size of the image, 128 or 96x160.")] = "128",
    token: Annotated[
        str, typer.Option(metavar="Y,X", help="Position of the token, as shares of height and width.")
    ] = "0.5,0.5",
    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Average the receptive field over N images.")] = 16,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="Seed of random weights.")] = 0,
    out: LocalOut = Path("results"),
    run: RunName = None,
) -> None:
    """Draw one token's attention in every layer, and its effective receptive field."""
    name, where = check_model(model), _share_pair(token)
    weights = Path(checkpoint) if checkpoint else None
    spec = parse_data(data or _trained_on(weights) or "digits:cue")
    size = one_size(res, "maps takes one size")
    spec.check_size(size)
    check_free(out, run)
    from sema_bench.studies.maps.runs import draw_maps  # loads torch

    pictures = draw_maps(name, weights, spec, index, (size.height, size.width), where, samples=samples, seed=seed)
    folder = RunFolder.create(out, "maps", run, metadata=creation_facts())
    for kind, picture in pictures.items():
        write_own(folder.path / "plots" / f"maps.{kind}", picture)
        typer.echo(str(folder.path / "plots" / f"maps.{kind}"))


def _trained_on(checkpoint: Path | None) -> str:
    """Return the scenes that a checkpoint names as its training data; "" if it names none, or files."""
    data = str(read_about(checkpoint).get("data", "")) if checkpoint else ""
    return data if data.startswith("digits:") else ""


def _share_pair(text: str) -> tuple[float, float]:
    try:
        y, x = (float(part) for part in text.split(","))
        if not (0 <= y <= 1 and 0 <= x <= 1):
            raise ValueError
    except ValueError:
        raise UsageError(f"--token takes two shares from 0 to 1, such as 0.5,0.25; got {text!r}") from None
    return y, x
