"""``sema-bench maps``: draw what a class and a token depend on, and measure the effective receptive field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sema_bench.cli.option_groups import OptionGroup
from sema_bench.cli.option_values import checkpoints, items, model_names, numbers
from sema_bench.cli.options import LocalOut, RunName
from sema_bench.cli.output import put_out
from sema_bench.errors import UsageError, unknown_name
from sema_bench.machine.interrupts import stop_on_signals
from sema_bench.spec.axes import HOW, MEASURED
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.files import check_regular_file
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.weights_source import read_about
from sema_bench.store.run_folder import check_free

_KINDS = ("cam", "rollout", "heads", "erf")
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class PictureOptions(OptionGroup, panel=MEASURED):
    """Options that choose the image and its sizes."""

    image: Annotated[str | None, typer.Option(metavar="FILE", help="Draw this image, at its size or --res.")] = None
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Images, as for evaluate; default: those of the training, or digits:cue."),
    ] = None
    index: Annotated[int, typer.Option(metavar="N", min=0, help="Index of the image in the data.")] = 0
    res: Annotated[
        str | None, typer.Option(metavar="SIZES", help="Sizes of the image, as for scale; default: 128.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class FieldOptions(OptionGroup, panel=HOW):
    """Options of the receptive field."""

    samples: Annotated[int, typer.Option(metavar="N", min=1, help="Average the receptive field over N images.")] = 16
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, max=_LARGEST_SEED, help="First seed of random weights and images.")
    ] = 0
    seeds: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Receptive fields: number of seeds.")] = 1


def maps(
    *,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models side by side, e.g. swin_tiny,timm:resnet18; default: those with a checkpoint.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            metavar="MODEL=FILE",
            help="Weights; default: random ones. May be repeated.",
            rich_help_panel=MEASURED,
        ),
    ] = None,
    picture: PictureOptions,
    show: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="cam, rollout, heads, erf; default: all that a model has.", rich_help_panel=MEASURED
        ),
    ] = None,
    class_: Annotated[
        str, typer.Option("--class", metavar="N|predicted", help="Class of cam.", rich_help_panel=HOW)
    ] = "predicted",
    cam: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="gradcam, or a method of the extra cam: gradcam++, scorecam, …",
            rich_help_panel=HOW,
        ),
    ] = "gradcam",
    token: Annotated[
        str,
        typer.Option(
            metavar="Y,X|class",
            help="Token, as shares of height and width; or the class token, whose field is that of the centre.",
            rich_help_panel=HOW,
        ),
    ] = "0.5,0.5",
    field: FieldOptions,
    out: LocalOut = Path("results"),
    run: RunName = None,
) -> None:
    """Draw Grad-CAM, attention rollout, a token's row in every head, and its effective receptive field.

    Receptive fields are averaged over images drawn from --data, or from the data of the training, otherwise over
    normal noise. Their areas at 50 and 90 % go into erf.csv.
    """
    image, data, res, seed = picture.image, picture.data, picture.res, field.seed
    weights = {name: Path(file) for name, file in checkpoints(checkpoint or []).items()}
    names = list(dict.fromkeys(model_names(models))) if models is not None else list(weights)
    if not names:
        raise UsageError("maps needs models; give --models NAME,… or --checkpoint MODEL=FILE")
    if strangers := weights.keys() - {*names}:
        raise UsageError(f"--checkpoint gives weights of {min(strangers)}, which is not among --models")
    if image is not None and (data is not None or picture.index):
        raise UsageError("--image takes the place of --data and --index; drop one")
    kinds = _KINDS if show is None else tuple(dict.fromkeys(items(show)))
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise unknown_name("map", unknown[0], _KINDS)
    if seed + field.seeds - 1 > _LARGEST_SEED:
        raise UsageError(f"--seed {seed} with --seeds {field.seeds} goes beyond {_LARGEST_SEED}; give a smaller one")
    if "cam" not in kinds and (class_ != "predicted" or cam != "gradcam"):
        raise UsageError("--class and --cam are for cam; add it to --show")
    if "erf" not in kinds and (field.samples, field.seeds) != (FieldOptions.samples, FieldOptions.seeds):
        raise UsageError("--samples and --seeds are for erf; add it to --show")
    position, label = None if token == "class" else _share_pair(token), _class_number(class_)
    sizes = parse_resolutions(res or "128") if res is not None or image is None else ()
    text = data or next(filter(None, map(_trained_on, weights.values())), "")
    spec = parse_data(text or "digits:cue")
    if image is None:
        for size in sizes:
            spec.check_size(size)
    else:
        check_regular_file(Path(image), "--image")
    check_free(out, run)
    from sema_bench.studies.maps.study import Study, draw_maps  # loads torch

    shown = Path(image) if image is not None else spec
    drawn_from = spec if text and image is None else None
    study = Study(
        models=names,
        weights=weights,
        shown=shown,
        index=picture.index,
        drawn_from=drawn_from,
        sizes=sizes,
        kinds=kinds,
        strict=show is not None,
        token=position,
        label=label,
        method=cam,
        samples=field.samples,
        seeds=range(seed, seed + field.seeds),
    )
    with stop_on_signals():
        paths, report = draw_maps(study, out, run)
    put_out(report)
    for path in paths:
        typer.echo(str(path))


def _trained_on(checkpoint: Path) -> str:
    """Return the scenes that a checkpoint names as its training data; "" if it names none, or files."""
    data = str(read_about(checkpoint).get("data", ""))
    return data if data.startswith("digits:") else ""


def _class_number(text: str) -> int | None:
    if text == "predicted":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"--class takes the number of a class, or predicted; got {text!r}")
    return int(text)


def _share_pair(text: str) -> tuple[float, float]:
    takes = "class, or two shares from 0 to 1 such as 0.5,0.25"
    y, x = numbers("--token", text, takes=takes, check=lambda pair: len(pair) == 2 and all(0 <= c <= 1 for c in pair))
    return y, x
