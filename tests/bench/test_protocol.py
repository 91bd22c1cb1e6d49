"""Test protocols: what they do with an image, which one is the default, which are refused, and what records say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from command_support import invoke
from PIL import Image

import sema
from sema.models import MODELS
from sema_bench.data.datasets import TestImages
from sema_bench.data.preprocess import resized_and_cropped, squashed
from sema_bench.spec.cell import Cell
from sema_bench.spec.data_source import parse_data
from sema_bench.spec.plan import build_plan
from sema_bench.spec.protocol import PROTOCOLS, default_protocol, network_name
from sema_bench.spec.record import Record
from sema_bench.spec.resolution import parse_resolutions
from sema_bench.spec.suite import parse_suite
from sema_bench.store.run_folder import RunFolder
from sema_bench.worker.workload import Workload

MODEL = "sema_micro[linear,head=max]"
PHOTOGRAPHS = "folder:imagenet"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of 96×160 in two classes."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 160, 3), dtype=np.uint8)
    for label, image in enumerate(pixels):
        (root / str(label)).mkdir()
        Image.fromarray(image).save(root / str(label) / "0.png")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(sema.create_model(MODEL, num_classes=2).state_dict(), path)
    return path


def planned(models: list[str], res: str, **changes: object) -> dict[tuple[str, int], str]:
    body = {"name": "s", "models": models, "res": res, "probes": ["accuracy"], "data": [PHOTOGRAPHS], "training": {}}
    plan = build_plan(parse_suite({**body, **changes}, source="s"), device="cpu", threads=1)
    return {(cell.model, cell.height): cell.protocol for cell in plan.cells}


def test_each_protocol_prepares_an_image_as_it_says(images: Path) -> None:
    spec = parse_data(f"folder:{images}")
    image = Image.open(images / "0" / "0.png")
    expected = {
        "crop": (resized_and_cropped(image, (64, 64), crop_pct=0.875), 0.875),
        "scaled-windows": (resized_and_cropped(image, (64, 64), crop_pct=0.875), 0.875),
        "full-crop": (resized_and_cropped(image, (64, 64), crop_pct=1.0), 1.0),
        "squash": (np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)), 1.0),
    }
    assert set(expected) == set(PROTOCOLS)
    for protocol, (pixels, crop_pct) in expected.items():
        found = TestImages(spec, protocol=protocol)
        assert np.array_equal(found.sample(0, (64, 64))[0], pixels), protocol
        assert found.stated()["preparation"]["crop_pct"] == crop_pct
    assert found.stated()["preparation"]["crop"] == ("none" if protocol == "squash" else "centre")


def test_squashing_is_torchvisions_resize_to_both_sides() -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    resize = transforms.Resize((70, 40), interpolation=transforms.InterpolationMode.BICUBIC)
    assert np.array_equal(squashed(image, (70, 40)), np.asarray(resize(image)))


def test_the_default_is_what_the_authors_of_the_model_do() -> None:
    models = ["swin_tiny", "xcit_small_12_p16", "sima_small_12_p16", "cvt_13"]
    assert planned(models, "384") == {
        ("swin_tiny", 384): "crop",
        ("xcit_small_12_p16", 384): "full-crop",
        ("sima_small_12_p16", 384): "crop",
        ("cvt_13", 384): "squash",
    }
    assert set(planned(["cvt_13"], "224,384").values()) == {"crop"}  # 224 weights at more sizes: one curve
    assert set(planned(models, "384", protocol=["crop"]).values()) == {"crop"}
    assert set(planned(["xcit_small_12_p16"], "224", data=["digits:field"]).values()) == {"crop"}
    (size,) = parse_resolutions("224")
    assert default_protocol("xcit_small_12_p16", [size], parse_data(f"{PHOTOGRAPHS},crop_pct=0.9")) == "crop"


def test_cells_of_earlier_releases_keep_their_identity() -> None:
    old = Cell(model="swin_tiny", height=224, width=224, data=PHOTOGRAPHS, weights="w@1")
    assert old.id == f"swin_tiny@224x224/b1/float32/channels_last/eager/cpu/t1/retain/{PHOTOGRAPHS}/w@1"
    assert dataclasses.replace(old, protocol="squash").id == old.id.replace("/w@1", "/squash/w@1")
    line = json.loads(Record(cell=old, status="ok").to_json())
    assert line["schema_version"] == 1
    del line["cell"]["protocol"]
    assert Record.from_json(json.dumps(line)).cell == old


def test_a_record_and_its_row_hold_the_protocol(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    given = ("--model", MODEL, "--checkpoint", str(checkpoint), "--data", f"folder:{images}", "--res", "64")
    code, _, err = invoke("evaluate", *given, "--protocol", "crop,squash", "--out", str(tmp_path), "--run", "r")
    assert code == 0, err
    records = {record.cell.protocol: record for record in RunFolder.open(tmp_path, "r").records()}
    assert set(records) == {"crop", "squash"}
    assert records["squash"].details["accuracy"]["preparation"]["resize"] == "both sides to the resolution"
    assert pd.read_csv(tmp_path / "r" / "table.csv")["protocol"].tolist() == ["crop", "squash"]


@pytest.mark.parametrize(
    ("protocol", "data", "message"),
    [
        ("sqash", "folder:{images}", "unknown protocol 'sqash'; did you mean 'squash'?"),
        ("scaled-windows", "folder:{images}", "protocol scaled-windows sets windows, which sema_micro"),
        ("full-crop", "folder:{images},crop_pct=0.9", "sets the crop, and so does crop_pct of the data; drop one"),
        ("squash", "digits:field", "prepares photographs, and scenes are drawn at their size; drop it"),
    ],
)
def test_a_protocol_that_cannot_be_used_is_refused_in_one_line(
    images: Path, checkpoint: Path, tmp_path: Path, protocol: str, data: str, message: str
) -> None:
    given = ("--model", MODEL, "--checkpoint", str(checkpoint), "--data", data.format(images=images), "--res", "64")
    code, shown, err = invoke("evaluate", *given, "--protocol", protocol, "--out", str(tmp_path))
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not any(tmp_path.iterdir())


def test_a_protocol_without_accuracy_is_refused() -> None:
    code, _, err = invoke("scale", "--models", "deit_tiny", "--protocol", "squash", "--dry-run")
    assert code == 2
    assert "uses data, protocol, corrupt, readout and training" in err


def test_deit_has_no_windows_to_scale() -> None:
    given = ("--probes", "accuracy", "--data", PHOTOGRAPHS, "--checkpoint", "deit_small=x", "--models", "deit_small")
    code, _, err = invoke("scale", *given, "--protocol", "scaled-windows", "--dry-run")
    assert (code, err.count("\n")) == (2, 1)
    assert "which deit_small does not accept" in err


@pytest.mark.skipif("windows" not in MODELS.options("swin_tiny"), reason="Swin has no option windows")
def test_scaled_windows_are_those_of_the_model_and_take_its_weights(tmp_path: Path) -> None:
    assert network_name("swin_tiny", "scaled-windows") == "swin_tiny[windows=scaled]"
    assert set(planned(["swin_tiny"], "224", protocol=["scaled-windows"]).values()) == {"scaled-windows"}
    path = tmp_path / "swin.pth"
    torch.save(sema.create_model("swin_tiny").state_dict(), path)
    cell = Cell(model="swin_tiny", height=96, width=96, data=PHOTOGRAPHS, protocol="scaled-windows")
    logits = {
        protocol: Workload(dataclasses.replace(cell, protocol=protocol), weights=path).forward()
        for protocol in ("crop", "scaled-windows")
    }
    assert not torch.allclose(logits["crop"], logits["scaled-windows"])
