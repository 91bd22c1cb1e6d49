"""``sema-bench train``: train one model by one recipe, alone or under ``torchrun``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sema_bench.cli.option_groups import OptionGroup
from sema_bench.cli.option_values import given, one_size
from sema_bench.cli.options import LocalOut, Workers
from sema_bench.errors import UsageError
from sema_bench.spec.cell import check_device, check_model
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.recipe_file import load_recipe
from sema_bench.spec.suite import Suite, load_suite, read_toml
from sema_bench.training.job import Job, Request, check_installed, resumed, started


@dataclass(frozen=True, kw_only=True)
class RecipeOptions(OptionGroup):
    """The model, the data and the recipe; a resumed training has them already."""

    model: Annotated[str | None, typer.Option(metavar="NAME", help="Model, e.g. sema_micro[linear,head=max].")] = None
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="digits:field, folder:PATH, or tar:, npz:, idx:, hub:.")
    ] = None
    res: Annotated[str | None, typer.Option(metavar="SIZE", help="Size of training images, 64 or 64x96.")] = None
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the data.")] = None
    batch: Annotated[int | None, typer.Option(metavar="N", help="Images per step, over all devices.")] = None
    lr: Annotated[float | None, typer.Option(metavar="X", help="Learning rate after the warm-up.")] = None
    set: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Set any other key of the recipe; may be repeated.")
    ] = None
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="A paper's recipe, e.g. mila or deit, or a TOML file.")
    ] = None
    init: Annotated[
        Path | None, typer.Option(metavar="CHECKPOINT", help="Begin with these weights, at any size and classes.")
    ] = None
    freeze_backbone: Annotated[
        bool | None, typer.Option("--freeze-backbone", help="Train the classifier alone (a linear probe).")
    ] = None
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, max=2**31 - 1, help="Seed of weights, order and augmentation.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class MachineOptions(OptionGroup):
    """The parts of this machine that a training uses."""

    device: Annotated[str | None, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:<index>.")] = None
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Intra-op threads.")] = None
    workers: Workers = None


def train(
    *,
    suite: Annotated[str | None, typer.Argument(help="A suite with [training], e.g. train_digits.")] = None,
    recipe: RecipeOptions,
    machine: MachineOptions,
    out: LocalOut = Path("results"),
    run: Annotated[
        str | None, typer.Option("--run", "--name", metavar="NAME", help="Name of the run; default: <UTC time>-train.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume this training, with its own recipe.")
    ] = None,
) -> None:
    """Train a model; write weights, metrics and a plot to the run's folder. Resume with --resume RUN.

    Several GPUs: torchrun --nproc-per-node 8 -m sema_bench train … --name NAME (--run is an option of torchrun).
    """
    check_installed()
    base = load_suite(suite) if suite and resume is None else None
    if resume is not None:
        options = {f"--{name.replace('_', '-')}": value for name, value in {**vars(recipe), "run": run}.items()}
        if ignored := [*given(SUITE=suite, **options)]:
            raise UsageError(f"--resume uses the recipe that the training was started with; drop {ignored[0]}")
        request = resumed(out, resume)
    else:
        request = _new_request(suite, base, recipe, out, run)
    device, threads, workers = machine.device, machine.threads, machine.workers
    if base:
        device = device or base.device
        threads = base.threads[0] if base.threads and threads is None else threads
        workers = base.workers if workers is None else workers
    device = check_device(device or "auto")
    needs_cuda = base is not None and base.requires_cuda
    from sema_bench.training.execute import execute  # loads torch

    execute(request, device=device, needs_cuda=needs_cuda, threads=threads, workers=workers)


def _new_request(name: str | None, base: Suite | None, options: RecipeOptions, out: Path, run: str | None) -> Request:
    """Make the training that the options ask for, on top of the suite ``base`` called ``name``."""
    if base and base.training is None:
        raise UsageError(f"{name} has no [training]; run it with sema-bench run")
    if base and options.recipe:
        raise UsageError(f"{name} and --recipe {options.recipe} are two recipes; drop one")
    models = [check_model(options.model)] if options.model else base.models if base else []
    data = [str(parse_data(options.data))] if options.data else (base.data or []) if base else []
    if len(models) != 1 or len(data) != 1:
        raise UsageError(f"train takes one model and one data set; give {'--model' if len(models) != 1 else '--data'}")
    size = None if options.res is None else list(one_size(options.res, "train takes one size"))
    changes = given(
        res=size,
        epochs=options.epochs,
        batch=options.batch,
        lr=options.lr,
        freeze_backbone=options.freeze_backbone,
    )
    assigned = _assignments(options.set or [])
    if both := sorted(changes.keys() & assigned):
        raise UsageError(f"--{both[0].replace('_', '-')} and --set {both[0]}=… are the same; drop one")
    start = (base and base.recipe(data[0])) or Recipe()
    if options.recipe:
        start = load_recipe(options.recipe, models[0])
    recipe = start.changed({**changes, **assigned}, source="recipe")
    seed = recipe.seeds[0] if options.seed is None else options.seed
    return started(Job(models[0], parse_data(data[0]), recipe, seed), init=options.init, out=out, name=run)


def _assignments(settings: list[str]) -> dict[str, Any]:
    """Parse the assignments of ``--set``; a value that is not TOML is text."""
    assigned: dict[str, Any] = {}
    for text in settings:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not key or not text.strip().isprintable():  # a line break would begin another key
            raise UsageError(f"--set takes KEY=VALUE; got {text!r}")
        if key in assigned:
            raise UsageError(f"--set gives {key} twice")
        try:
            assigned[key] = read_toml(f"value = {value}")["value"]
        except (ValueError, RecursionError):
            assigned[key] = value
    return assigned
