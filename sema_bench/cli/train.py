"""``sema-bench train``: one model, one recipe, weights out; alone or under ``torchrun``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sema_bench.cli.results import LocalOut
from sema_bench.errors import EXIT_OK, UsageError
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.suite import Suite, check_device, check_model, load_suite, read_toml


def train(
    suite: Annotated[
        str | None, typer.Argument(help="A suite with [training], e.g. suites/train_imagenet_sema_tiny.toml.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model, e.g. sema_micro[linear,head=max].")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="digits:field, folder:PATH, tar:…, hub:….")] = None,
    res: Annotated[str | None, typer.Option(metavar="SIZE", help="Size of training images, 64 or 64x96.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images of one step, over all devices.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Learning rate after the warm-up.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a recipe; may be repeated.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Of weights, order, augmentation.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:<index>.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Intra-op threads.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=256, help="Processes that prepare images; default: spare CPUs."),
    ] = None,
    out: LocalOut = Path("results"),
    run: Annotated[
        str | None, typer.Option("--run", "--name", metavar="NAME", help="Name of the run's folder.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with this training; its recipe stands.")
    ] = None,
) -> None:
    """Train a model; weights, metrics and a plot go to the run's folder. After Ctrl-C or kill -9: --resume RUN.

    Several GPUs: torchrun --nproc-per-node 8 -m sema_bench train … --name NAME (torchrun takes --run for its own).
    """
    from sema_bench.training import command

    base: Suite | None = None
    if resume is not None:
        given: dict[str, Any] = {
            "SUITE": suite,
            "--model": model,
            "--data": data,
            "--res": res,
            "--epochs": epochs,
            "--batch": batch,
        }
        given |= {"--lr": lr, "--set": settings, "--seed": seed, "--run": run}
        if ignored := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"--resume goes on with the recipe that the training was started with; drop {ignored[0]}")
        request = command.resumed(out, resume)
    else:
        base = load_suite(suite) if suite else None
        if base and base.training is None:
            raise UsageError(f"{suite} has no [training]; run it with sema-bench run")
        models = [check_model(model)] if model else base.models if base else []
        places = [str(parse_data(data))] if data else (base.data or []) if base else []
        if len(models) != 1 or len(places) != 1:
            lacking = "--model" if len(models) != 1 else "--data"
            raise UsageError(f"a training is of one model on one set of data; give {lacking}")
        changes = {"res": _size(res), "epochs": epochs, "batch": batch, "lr": lr}
        changes = {key: value for key, value in changes.items() if value is not None}
        assigned = _assignments(settings or [])
        if both := sorted(changes.keys() & assigned):
            raise UsageError(f"--{both[0]} and --set {both[0]}=… are the same; drop one")
        start = (base and base.recipe(places[0])) or Recipe()
        recipe = start.changed({**changes, **assigned}, source="recipe")
        chosen = recipe.seeds[0] if seed is None else seed
        request = command.started(models[0], places[0], recipe, seed=chosen, out=out, name=run)
    if base:
        device = device or base.device
        threads = base.threads[0] if base.threads and threads is None else threads
        workers = base.workers if workers is None else workers
    needs_cuda = base is not None and base.requires_cuda
    place = check_device(device or "auto")
    command.execute(request, device=place, needs_cuda=needs_cuda, threads=threads, workers=workers)
    raise typer.Exit(EXIT_OK)


def _size(text: str | None) -> list[int] | None:
    from sema_bench.spec.resolution import parse_resolutions

    if text is None:
        return None
    sizes = parse_resolutions(text)
    if len(sizes) != 1:
        raise UsageError(f"--res: a training is at one size; got {len(sizes)} ({text!r})")
    return [sizes[0].height, sizes[0].width]


def _assignments(settings: list[str]) -> dict[str, Any]:
    """Return what ``--set`` gives; a value is read as TOML reads it, and as text where that fails."""
    found: dict[str, Any] = {}
    for text in settings:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not text.strip().isprintable():  # a line break would begin another key
            raise UsageError(f"--set takes KEY=VALUE; got {text!r}")
        if key in found:
            raise UsageError(f"--set gives {key} twice")
        try:
            body = read_toml(f"value = {value}")
        except (ValueError, RecursionError):
            body = {"value": value}
        found[key] = body["value"]
    return found
