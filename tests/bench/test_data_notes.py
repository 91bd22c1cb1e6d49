"""Test notes on the images: printed once on stderr, and kept in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from command_support import invoke
from PIL import Image

import sema
from sema_bench.spec.suite import parse_suite
from sema_bench.store.run_folder import RunFolder
from sema_bench.training.checkpoint import write_checkpoint

MODEL = "sema_micro[linear,head=max]"


def write_classes(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(root / name / "0.png")
    return root


def test_a_class_folder_without_images_is_named_once_and_in_the_record(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", "a", "b")
    (tmp_path / "data" / "c").mkdir()
    torch.manual_seed(0)
    network = sema.create_model(MODEL, num_classes=3)
    write_checkpoint(tmp_path / "model.safetensors", network.state_dict(), {"model": MODEL})
    given = ("--model", MODEL, "--checkpoint", str(tmp_path / "model.safetensors"), "--res", "64", "--threads", "1")
    out = ("--data", f"folder:{tmp_path / 'data'}", "--out", str(tmp_path / "runs"), "--run", "r")
    code, _, err = invoke("evaluate", *given, *out)
    assert code == 0, err
    assert err.count("no image can be read in these class folders") == 1
    (record,) = RunFolder.open(tmp_path / "runs", "r").records()
    (note,) = record.details["accuracy"]["notes"]
    assert "'c'; remove those that are not classes" in note


def test_classes_that_only_one_part_has_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", "a", "b", "old")
    write_classes(tmp_path / "data" / "val", "a", "b")
    out = ("--out", str(tmp_path / "runs"), "--threads", "1")
    code, _, err = invoke("train", "--model", MODEL, "--data", f"folder:{tmp_path / 'data'}", "--res", "64", *out)
    assert code == 2
    assert "only the training part has 'old'" in err


def test_a_training_says_which_class_folders_hold_no_image(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write_classes(tmp_path / "data" / part, "a", "b")
        (tmp_path / "data" / part / "c").mkdir()
    out = ("--out", str(tmp_path / "runs"), "--threads", "1", "--batch", "2", "--epochs", "1", "--workers", "0")
    code, _, err = invoke("train", "--model", MODEL, "--data", f"folder:{tmp_path / 'data'}", "--res", "64", *out)
    assert code == 0, err
    assert err.replace("\n", " ").count("warning: no image can be read in these class folders") == 2


def test_data_is_distinguished_from_other_data_whatever_its_folder_is_called() -> None:
    table: dict[str, Any] = {
        "name": "n",
        "claim": "c",
        "cost": "c",
        "models": ["sema_micro"],
        "res": "64",
        "probes": ["accuracy"],
    }
    table["training"] = {"res": 64, "batch": 8}
    both = ['folder:"a,limit=1"', 'folder:"a,limit=2"']
    suite = parse_suite({**table, "data": both, "training_for": {both[1]: {"batch": 16}}}, source="test")
    recipes = [suite.recipe(data) for data in both]
    assert [recipe.batch == 16 for recipe in recipes if recipe] == [False, True]
