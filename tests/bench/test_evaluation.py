"""Test accuracy: what is counted, by which classes, and that a stopped evaluation resumes where it was."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from command_support import invoke
from PIL import Image
from torch import nn

import sema
from sema_bench.data.datasets import TestImages
from sema_bench.data.loader import normalised
from sema_bench.data.preprocess import MEAN, STD
from sema_bench.data.scenes import DigitScenes
from sema_bench.errors import ProbeError
from sema_bench.spec.data_source import parse_data
from sema_bench.store.run_folder import RunFolder
from sema_bench.training.checkpoint import write_checkpoint
from sema_bench.worker.build_model import build_with_weights, read_weights
from sema_bench.worker.evaluation import Evaluation, InputFormat, accuracy_measurements, match_classes, shares
from sema_bench.worker.protocol import Tally, from_json

CPU = torch.device("cpu")
MODEL = "sema_micro[linear,head=max]"


class Brightness(nn.Module):
    """Classifies images by their mean: of ten classes, the nearest tenth has the highest logit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = (x * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)).mean(dim=(1, 2, 3))
        return -(mean[:, None] * 10 - torch.arange(10) - 0.5).abs()


def evaluation(images: TestImages, *, tally: Tally | None = None, batch: int = 4, model: nn.Module | None = None):
    return Evaluation(
        model or Brightness(),
        images,
        match_classes(images.classes, None, 10),
        InputFormat((64, 64), batch, CPU),
        workers=0,
        tally=tally or Tally(),
    )


@pytest.fixture(scope="module")
def grey_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of grey images; in each class two images are right, and one is three classes off."""
    root = tmp_path_factory.mktemp("grey")
    for label in range(10):
        (root / str(label)).mkdir()
        for index in range(3):
            shown = label if index % 2 == 0 else (label + 3) % 10
            Image.new("RGB", (64, 64), (round((shown + 0.5) * 25.5),) * 3).save(root / str(label) / f"{index}.png")
    return root


def test_normalised_pixels_are_those_of_the_definition() -> None:
    pixels = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    tensor = normalised(pixels, device=CPU, dtype=torch.float64, memory_format=torch.channels_last)
    expected = (pixels.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    torch.testing.assert_close(tensor, expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)


def test_top1_and_top5_are_counted_over_all_images(grey_folder: Path) -> None:
    evaluated = evaluation(TestImages(parse_data(f"folder:{grey_folder},crop_pct=1.0")))
    assert evaluated.advance(math.inf)
    assert (evaluated.tally.seen, evaluated.tally.correct) == (30, 20)
    # An image that shows 0 or 1 has 0 to 4 as its five nearest, 8 or 9 has 5 to 9, and others two on each side. Of the
    # images that are three off, those that show 8 or 9 (classes 5 and 6) have their own class among the five.
    assert evaluated.tally.correct_top5 == 22
    top1 = accuracy_measurements(evaluated.tally)[0]
    assert top1.value == pytest.approx(2 / 3)
    # Wilson's interval for 20 of 30, by its formula.
    z, n, p = 1.959964, 30, 2 / 3
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (top1.ci_low, top1.ci_high) == (
        pytest.approx(centre - half, abs=1e-6),
        pytest.approx(centre + half, abs=1e-6),
    )


def test_an_evaluation_that_was_stopped_ends_with_the_same_counts(grey_folder: Path) -> None:
    images = TestImages(parse_data(f"folder:{grey_folder}"))
    whole = evaluation(images)
    whole.advance(math.inf)
    first = evaluation(images)
    assert not first.advance(0.0) or first.tally.position == 0
    first._take_one()
    body = json.loads(json.dumps(first.tally.__dict__))
    rest = evaluation(images, tally=from_json(Tally, body))
    rest.advance(math.inf)
    for name in ("position", "correct", "correct_top5", "seen"):
        assert getattr(rest.tally, name) == getattr(whole.tally, name)


def test_every_forward_pass_has_the_same_shape(grey_folder: Path) -> None:
    shapes = set()

    class Watched(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes.add(tuple(x.shape))
            return super().forward(x)

    evaluation(TestImages(parse_data(f"folder:{grey_folder}")), batch=7, model=Watched()).advance(math.inf)
    assert shapes == {(7, 3, 64, 64)}


def test_unreadable_images_are_counted_named_and_left_out(grey_folder: Path, tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / str(label)).mkdir()
    (tmp_path / "3" / "torn.png").write_bytes(b"torn")
    (tmp_path / "4" / "good.png").write_bytes((grey_folder / "4" / "0.png").read_bytes())
    evaluated = evaluation(TestImages(parse_data(f"folder:{tmp_path}")))
    evaluated.advance(math.inf)
    assert (evaluated.tally.seen, evaluated.tally.unreadable, evaluated.tally.correct) == (1, 1, 1)
    assert evaluated.stated()["unreadable"] == ["3/torn.png: not an image, or of a format that is not read"]
    (tmp_path / "4" / "good.png").unlink()
    none = evaluation(TestImages(parse_data(f"folder:{tmp_path}")))
    none.advance(math.inf)
    with pytest.raises(ProbeError, match=r"none of the 1 test images can be read, 3/torn\.png first"):
        accuracy_measurements(none.tally)


def test_outputs_that_are_no_numbers_are_an_error(grey_folder: Path) -> None:
    class Broken(Brightness):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * float("nan")

    with pytest.raises(ProbeError, match="not finite"):
        evaluation(TestImages(parse_data(f"folder:{grey_folder}")), model=Broken()).advance(math.inf)


def test_classes_are_matched_by_name_where_the_checkpoint_has_names() -> None:
    match = match_classes(("dog", "bee"), ("ant", "bee", "cat", "dog"), 4)
    assert match.outputs is not None
    assert match.outputs.tolist() == [3, 1]
    with pytest.raises(ProbeError, match="1 of the data's 2 classes are unknown to the checkpoint, 'fly' first"):
        match_classes(("fly", "bee"), ("ant", "bee"), 2)
    assert match_classes(("a", "b"), None, 2).outputs is None
    with pytest.raises(ProbeError, match="the data has 2 classes and the model 1000"):
        match_classes(("a", "b"), None, 1000)


def test_a_folder_that_may_be_no_class_is_named_where_counts_differ() -> None:
    with pytest.raises(ProbeError, match=r"has 3 classes and the model 2.*perhaps 'logs' .no image can be read there"):
        match_classes(("cat", "dog", "logs"), None, 2, empty=("logs",))
    with pytest.raises(ProbeError, match="remove what is not a class: 'cat', 'dog', 'old'"):
        match_classes(("cat", "dog", "old"), None, 2)
    with pytest.raises(ProbeError, match=r"'logs' first \(no image of it can be read\); it knows 2"):
        match_classes(("cat", "dog", "logs"), ("cat", "dog"), 2, empty=("logs",))
    assert match_classes(("cat", "dog", "logs"), None, 3, empty=("logs",)).how.startswith("by order")


def test_a_class_without_images_stands_in_the_facts(tmp_path: Path) -> None:
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        if label != 7:
            Image.new("RGB", (8, 8)).save(tmp_path / str(label) / "0.png")
    (note,) = evaluation(TestImages(parse_data(f"folder:{tmp_path}"))).stated()["notes"]
    assert note.endswith("count as classes all the same: '7'; remove those that are not classes")


def test_numbers_are_outputs_whatever_the_order_of_their_names() -> None:
    names = ("0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9")
    matched = match_classes(names, None, 11)
    assert matched.outputs is not None
    assert matched.outputs.tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]
    assert match_classes(("0", "1"), None, 1000, numbered=True).how.startswith("by number")
    for numbered, outputs in ((False, 1000), (True, 1)):
        with pytest.raises(ProbeError, match=f"2 classes and the model {outputs}"):
            match_classes(("0", "1"), None, outputs, numbered=numbered)


def test_images_are_distinguished_from_others(grey_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(grey_folder, tmp_path / "copy")
    one, same = (TestImages(parse_data(f"folder:{tmp_path / 'copy'}")) for _ in range(2))
    assert one.mark == same.mark
    (tmp_path / "copy" / "3" / "0.png").unlink()
    assert TestImages(parse_data(f"folder:{tmp_path / 'copy'}")).mark != one.mark
    scenes = [TestImages(parse_data(f"digits:field,images=9,seed={seed}")).mark for seed in (0, 1)]
    assert scenes[0] != scenes[1]


def test_nothing_seen_has_no_accuracy() -> None:
    with pytest.raises(ProbeError, match="none of the 0 test images"):
        shares(Tally())


# From the command line: a checkpoint, scenes, and the same scenes as files.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = sema.create_model(MODEL, num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    write_checkpoint(path, model.state_dict(), {"model": MODEL, "classes": [str(digit) for digit in range(10)]})
    return path


def write_scenes(root: Path, count: int) -> None:
    scenes = DigitScenes("field", "test", images=count)
    for index in range(count):
        pixels, label = scenes.scene(index, (64, 64))
        folder = root / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(folder / f"{index:04d}.png")


def test_a_folder_made_of_scenes_evaluates_as_the_scenes_do(tmp_path: Path, checkpoint: Path) -> None:
    write_scenes(tmp_path / "images", 120)
    common = ("evaluate", "--model", MODEL, "--checkpoint", str(checkpoint), "--res", "64", "--threads", "1")
    out = ("--out", str(tmp_path / "results"))
    code, shown, err = invoke(*common, "--data", "digits:field,images=120", "--run", "drawn", *out)
    assert code == 0, err
    assert "top-1, %" in shown
    assert "half of Wilson's interval" in shown
    code, _, err = invoke(*common, "--data", f"folder:{tmp_path / 'images'},crop_pct=1.0", "--run", "files", *out)
    assert code == 0, err
    drawn, files = (RunFolder.open(tmp_path / "results", name).records()[0] for name in ("drawn", "files"))
    for metric in ("top1", "top5", "evaluated_images"):
        assert drawn.value(metric) == files.value(metric)
    assert drawn.details["accuracy"]["classes_matched"] == "by name"
    assert files.details["accuracy"]["preparation"]["interpolation"].startswith("bicubic")
    assert (tmp_path / "results" / "drawn" / "plots" / "accuracy--max.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digits:field"), "has none; give --checkpoint"),
        (("--checkpoint", "gone.safetensors", "--data", "digits:field"), "no checkpoint at 'gone.safetensors'"),
        (("--checkpoint", "{checkpoint}", "--data", "digits:field", "--res", "32"), "need 64×64 pixels"),
        (
            ("--checkpoint", "{checkpoint}/../text.safetensors", "--data", "digits:field"),
            "not a complete safetensors file",
        ),
        (("--checkpoint", "{checkpoint}", "--data", "digits:feild"), "did you mean 'field'"),
        (("--checkpoint", "{checkpoint}", "--data", "digits:field", "--device", "meta"), "has no accuracy"),
    ],
)
def test_a_wrong_request_gets_one_line(checkpoint: Path, arguments: tuple[str, ...], message: str) -> None:
    (checkpoint.parent / "text.safetensors").write_text("no tensors")
    given = [argument.replace("{checkpoint}/..", str(checkpoint.parent)) for argument in arguments]
    given = [argument.replace("{checkpoint}", str(checkpoint)) for argument in given]
    code, _, err = invoke("evaluate", "--model", MODEL, *given)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_scale_asks_for_what_accuracy_needs() -> None:
    for given, message in (
        (("--probes", "accuracy"), "needs images; give --data"),
        (("--probes", "accuracy", "--data", "digits:field", "--models", MODEL), "has none; give --checkpoint"),
        (("--data", "digits:field"), "only probe accuracy uses"),
        (("--probes", "accuracy", "--data", "digits:field", "--checkpoint", "nonsense"), "takes MODEL=FILE"),
    ):
        code, _, err = invoke("scale", "--res", "64", *given)
        assert code == 2, err
        assert message in err


def test_weights_that_fit_another_model_by_chance_are_refused(checkpoint: Path) -> None:
    """Several attentions have weights of the same names and shapes; the checkpoint says which model it is for."""
    weights = read_weights(checkpoint)
    assert weights.about["model"] == MODEL
    other = MODEL.replace("linear", "softmax")
    with pytest.raises(ProbeError, match=re.escape(f"has the weights of {MODEL}; test that model")):
        build_with_weights(other, (64, 64), weights)
    unnamed = dataclasses.replace(weights, about={})
    assert build_with_weights(other, (64, 64), unnamed)


def test_a_checkpoint_of_another_model_is_refused_before_anything_begins(tmp_path: Path, checkpoint: Path) -> None:
    other = "sema_micro[softmax,head=attention]"
    common = ("--data", "digits:field,images=10", "--threads", "1", "--res", "64", "--out", str(tmp_path))
    code, _, err = invoke("evaluate", "--model", other, "--checkpoint", str(checkpoint), *common)
    assert code == 2
    assert f"has the weights of {MODEL}" in err
    assert not any(tmp_path.iterdir()), "nothing was begun"
    weights = ("--probes", "accuracy", "--checkpoint", f"{other}={checkpoint}")
    code, _, err = invoke("scale", "--models", other, *weights, *common)
    assert code == 2
    assert f"has the weights of {MODEL}" in err
    assert not any(tmp_path.iterdir())


@pytest.mark.faults
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, checkpoint: Path) -> None:
    common = ["--model", MODEL, "--checkpoint", str(checkpoint), "--res", "128", "--threads", "1", "--batch", "8"]
    small_pieces = "from sema_bench.driver import evaluator; evaluator.PIECE_S = 0.2; from sema_bench.cli import main"
    command = [sys.executable, "-c", f"{small_pieces}; main()", "evaluate", *common]
    command += ["--data", "digits:field,images=80", "--out", str(tmp_path), "--run", "r"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("r/unfinished/*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert RunFolder.open(tmp_path, "r").records() == []
    code, _, err = invoke("run", "--resume", "r", "--out", str(tmp_path))
    assert code == 0, err
    (resumed,) = RunFolder.open(tmp_path, "r").records()
    assert 0 < resumed.details["accuracy"]["resumed_at"] < 80
    code, _, err = invoke("evaluate", *common, "--data", "digits:field,images=80", "--out", str(tmp_path), "--run", "w")
    (whole,) = RunFolder.open(tmp_path, "w").records()
    for metric in ("top1", "top5", "evaluated_images"):
        assert resumed.value(metric) == whole.value(metric)
    assert not list(tmp_path.glob("*/unfinished/*.json"))
