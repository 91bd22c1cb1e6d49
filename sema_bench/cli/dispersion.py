"""``sema-bench dispersion``: measure whether attention coefficients vanish as the image grows, and what is left."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from sema.attention import ATTENTIONS
from sema_bench.cli.option_values import checkpoints, integers, model_names, numbers
from sema_bench.cli.options import LocalOut, RunName
from sema_bench.cli.output import put_out
from sema_bench.errors import UsageError
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.data_source import DataSpec, parse_data
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.store.run_folder import check_free

_FEWEST, _MOST = 4, 2**20
#: Attentions without coefficients over keys, or with coefficients over channels.
_NO_COEFFICIENTS = ("vmi", "xca", "vmamba", "vim")
_SIDES = "64,96,128,192,256"
_CHANNELS, _COMMON = "32,64,128,256", "0,0.5,0.9"


def dispersion(
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Models whose attention is measured; default: sema_micro with every attention."
        ),
    ] = None,
    keys: Annotated[
        str, typer.Option(metavar="RANGE", help="Numbers of keys (squares): A..B or a list.")
    ] = "16..65536",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option("--checkpoint", metavar="MODEL=FILE", help="Measure these weights on scenes; may be repeated."),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Measure how far softmax is from the mean of its values instead.")
    ] = False,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help=f"With --mean: channels of random features, in heads of 32; default: {_CHANNELS}."
        ),
    ] = None,
    common: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help=f"With --mean: share of them that all tokens have in common; default: {_COMMON}."
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="DATA", help="Scenes for trained weights.")] = "digits:field",
    res: Annotated[str | None, typer.Option(metavar="SIZES", help=f"Sizes of the scenes; default: {_SIDES}.")] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=2, max=1000, help="Number of features and scenes.")] = 8,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Seed of features and weights.")] = 0,
    out: LocalOut = Path("results"),
    run: RunName = None,
) -> None:
    """Measure how attention coefficients spread over more and more keys: largest, smallest, effective support.

    The features are bounded and random; with --checkpoint, also those that trained weights compute from scenes. With
    --mean, measure the distance between the output of softmax and the mean of the values, which SEMA adds.
    """
    weights = checkpoints(checkpoint or [])
    if mean and models is not None:
        raise UsageError(
            "--mean draws features for softmax alone; drop --models, and give trained ones by --checkpoint"
        )
    if not mean and (channels is not None or common is not None):
        raise UsageError("--channels and --common are for the features of --mean; add it, or drop them")
    every = [f"sema_micro[{name}]" for name in ATTENTIONS if name not in _NO_COEFFICIENTS]
    names = (model_names(models) if models is not None else list(weights)) or every
    widths = _widths(_CHANNELS if channels is None else channels)
    common, takes = _COMMON if common is None else common, "shares from 0 to below 1, such as 0,0.5"
    shares = sorted({*numbers("--common", common, takes=takes, check=lambda xs: all(0 <= x < 1 for x in xs))})
    counts = _keys(keys)
    spec = parse_data(data)
    if not spec.drawn:
        raise UsageError("dispersion follows one scene to larger canvases, so it needs drawn ones; give digits:…")
    check_free(out, run)
    if res is not None and not weights:
        raise UsageError("--res sets the sizes of scenes for trained weights; add --checkpoint, or drop it")
    sides = _sides(res or _SIDES, spec) if weights else []
    from sema_bench.studies.dispersion import study  # loads torch

    asked = study.Study(counts, weights, spec, sides, samples, seed)
    with stop_on_signals():
        if mean:
            report = study.measure_mean(asked, widths, shares, out, run)
        else:
            report = study.measure_dispersion(asked, names, out, run)
    put_out(report)


def _widths(text: str) -> list[int]:
    """Parse the channels of random features."""
    widths = integers("--channels", text)
    if odd := [width for width in widths if width % 32 or not 32 <= width <= 4096]:
        raise UsageError(f"--channels: {odd[0]} is not a multiple of 32 from 32 to 4096; a head has 32 channels")
    return sorted({*widths})


def _sides(res: str, spec: DataSpec) -> list[int]:
    """Parse the sides of the scenes, in pixels."""
    sizes = parse_resolutions(res)
    for size in sizes:
        spec.check_size(size)
        if size.height != size.width:
            raise UsageError(f"--res: scenes of dispersion are square; got {size.label}")
    if len(sizes) < 3:
        raise UsageError(f"--res: an exponent needs three sizes; got {len(sizes)}")
    return [size.height for size in sizes]


def _keys(text: str) -> list[int]:
    """Parse numbers of keys; a range means both ends, and every square of a power of two between them."""
    try:
        if ".." in text:
            low, high = (int(part) for part in text.split(".."))
            counts = {low, *(4**k for k in range(1, 11) if low < 4**k < high), high}
        else:
            counts = {int(part) for part in text.split(",")}
    except ValueError:
        raise UsageError(f"--keys takes A..B or a list of whole numbers; got {text!r}") from None
    for count in sorted(counts):
        if not _FEWEST <= count <= _MOST or math.isqrt(count) ** 2 != count:
            raise UsageError(f"--keys: {count} is not a square between {_FEWEST} and {_MOST}; the token grid is square")
    if len(counts) < 3:
        raise UsageError(f"--keys: an exponent needs three numbers of keys; got {len(counts)}")
    return sorted(counts)
