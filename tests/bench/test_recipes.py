"""Test the papers' recipes: every value names its source, the guide lists them, and each one trains."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from training_support import ALONE, Quiet

import sema
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.recipe import Recipe
from sema_bench.spec.recipe_file import list_recipes, load_recipe
from sema_bench.spec.suite import read_toml
from sema_bench.spec.weights_source import WEIGHTS_FILE
from sema_bench.training.checkpoint import read_about, read_checkpoint
from sema_bench.training.job import Job
from sema_bench.training.trainer import Trainer

RECIPES = list_recipes()
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "train.md"
#: Keys about the machine and the run, which no paper prints.
OURS = {
    *("epoch_images", "accumulate", "decay_share", "freeze_backbone", "checkpointing", "eval_epochs", "save_s"),
    *("seeds", "sync_batch_norm", "ema_batch", "mesa", "mesa_start"),
}
#: The smallest model of each recipe that tests can afford.
MODELS = {
    "sema": "sema_micro",
    "mila": "sema_micro[mila]",
    "deit": "deit_tiny",
    "swin": "swin_tiny",
    "vmamba": "sema_micro[vmamba]",
    "vim": "vim_tiny",
    "sima": "sema_micro[sima]",
    "xcit": "xcit_small_12_p16",
    "vminet": "vminet_ti",
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write scikit-learn's digits as photographs of 8×8 pixels, four of each to train on and one to test."""
    root = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for digit in range(10):
        for place, index in enumerate(np.flatnonzero(labels == digit)[:5]):
            folder = root / ("val" if place == 4 else "train") / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray((images[index].reshape(8, 8) * 15.9).astype(np.uint8)).save(folder / f"{index}.png")
    return root


def small(recipe: Recipe, **changes: object) -> Recipe:
    """Scale a recipe down: 64 pixels, 2 epochs of one batch of 8; rates follow the batch, warm-up the epochs."""
    share = 8 / recipe.batch
    rates = {key: getattr(recipe, key) * share for key in ("lr", "min_lr", "warmup_lr")}
    warmup = {"warmup_epochs": recipe.warmup * 2 / recipe.epochs}
    size = {"res": 64, "epochs": 2, "epoch_images": 8, "batch": 8}
    return recipe.changed({**rates, **warmup, **size, **changes}, source="test")


def train(folder: Path, data: Path, model: str, recipe: Recipe, *, last: int | None = None) -> list[float]:
    folder.mkdir(exist_ok=True)
    watcher = Quiet(last)
    Trainer(Job(model, parse_data(f"folder:{data}"), recipe, 0, 0), folder, ALONE, watcher).run()
    return watcher.losses


@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_a_recipe_scaled_down(tmp_path: Path, digits: Path, name: str) -> None:
    recipe = small(load_recipe(name), amp="off")  # float16 on a CPU: tested below, on one recipe
    losses = train(tmp_path, digits, MODELS[name], recipe)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    about = read_about(tmp_path / WEIGHTS_FILE)
    assert about["average"] is bool(recipe.ema)
    model = sema.create_model(MODELS[name], num_classes=10)
    assert sema.load_checkpoint(model, tmp_path / WEIGHTS_FILE).fits


def test_mila_in_float16_resumes_to_the_last_bit(tmp_path: Path, digits: Path) -> None:
    """Everything at once: MESA from the first step, its average, mixing, RandAugment, a scaler."""
    recipe = small(load_recipe("mila"), batch=4, mesa_start=0.0, ema=0.5, ema_batch=0)
    assert recipe.amp == "float16"
    whole = train(tmp_path / "whole", digits, MODELS["mila"], recipe)
    parts = train(tmp_path / "parts", digits, MODELS["mila"], recipe, last=1)
    parts += train(tmp_path / "parts", digits, MODELS["mila"], recipe)
    assert parts == whole
    one, other = (read_checkpoint(tmp_path / each / WEIGHTS_FILE)[0] for each in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    plain = train(tmp_path / "plain", digits, MODELS["mila"], recipe.changed({"mesa": 0.0}, source="test"), last=1)
    assert plain[0] < whole[0], "MESA adds a cross-entropy"


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_names_its_source(name: str) -> None:
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    for line in lines:
        if re.match(r"\w+ = ", line):
            assert re.search(r" # \S", line), line
    keys = {line.partition(" ")[0] for line in lines}
    assert Recipe.model_fields.keys() - OURS <= keys
    assert set(models_with_changes(name)) <= set(sema.list_models())


def test_a_model_has_its_own_changes() -> None:
    tiny, small_one, swapped = (load_recipe("mila", model) for model in ("mila_tiny", "mila_small", "mila_base[sema]"))
    assert [each.mesa for each in (tiny, small_one, swapped)] == [1.0, 1.5, 2.0]
    assert [each.drop_path for each in (tiny, small_one, swapped)] == [0.2, 0.3, 0.5]
    assert tiny.ema_decay == 0.9996
    sema_recipe, mila_recipe = (load_recipe(name).model_dump() for name in ("sema", "mila"))
    assert sema_recipe == mila_recipe, "SEMA's is MILA's"


def models_with_changes(name: str) -> list[str]:
    return list(read_toml(RECIPES[name].read_text(encoding="utf-8")).get("training_of", {}))


def _row(name: str) -> str:
    recipes = [load_recipe(name), *(load_recipe(name, model) for model in models_with_changes(name))]

    def shown(key: str) -> str:
        values = dict.fromkeys(f"{getattr(recipe, key):g}" for recipe in recipes)
        return " / ".join("–" if value == "0" else value for value in values)

    first = recipes[0]
    augmentation = f"{first.mixup:g}, {first.cutmix:g} | {first.randaugment.split('-')[1][1:]} | {first.erasing:g}"
    rates = " | ".join(map(shown, ("lr", "min_lr", "weight_decay", "clip_grad")))
    regular = " | ".join(map(shown, ("repeats", "drop_path", "ema", "mesa")))
    return (
        f"| `{name}` | {first.epochs} | {shown('batch')} | {rates} | {first.warmup:g} | {augmentation} | {regular} | "
        f"{first.amp} |"
    )


def test_the_guide_lists_the_recipes() -> None:
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+` \| \d+ \|", line)]
    assert rows == [_row(name) for name in RECIPES]
